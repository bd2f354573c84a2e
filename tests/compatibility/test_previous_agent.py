"""Boxes and operators of the previous release against a control plane of this one, both stores."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from control_plane import Box, Plane, Publisher, request_id, running_plane
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from databases import fresh_postgres

from tests.compatibility import previous_wire
from tests.compatibility.previous_wire import kind, message

PATIENCE_SECONDS = 15.0
DEVICE = previous_wire.module("device")
ROLLOUT = previous_wire.module("rollout")


@pytest.fixture(params=["sqlite", "postgres"])
async def plane(
    request: pytest.FixtureRequest, tmp_path: Path, require: Callable[..., None]
) -> AsyncIterator[Plane]:
    async with contextlib.AsyncExitStack() as stack:
        url = None
        if request.param == "postgres":
            url = await stack.enter_async_context(fresh_postgres(require))
        yield await stack.enter_async_context(running_plane(tmp_path / "server", database_url=url))


async def call(channel: Any, method: str, request: Any, answer: str) -> Any:
    """Call a unary method with a message of the previous wire; decode the answer as one."""
    unary = channel.unary_unary(
        f"/flotilla.v1.{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=kind(answer).FromString,
    )
    return await unary(request, timeout=PATIENCE_SECONDS)


async def enroll(plane: Plane, name: str) -> Box:
    """Enrol a box as the previous agent did."""
    _, secret = await plane.join_token()
    box = Box(name, plane)
    facts = message("HardwareFacts", architecture="aarch64", cores=4, memory_bytes=8 << 30)
    request = message("EnrollRequest", token=secret, csr_pem=box.csr(), name=name, facts=facts)
    answer = await call(plane.channel(None), "EnrollmentService/Enroll", request, "EnrollResponse")
    box.device_id, box.certificate_pem = answer.device_id, answer.certificate_pem
    return box


async def publish(plane: Plane, folder: Path, *versions: str) -> tuple[Publisher, list[bytes]]:
    publisher = Publisher(plane)
    await publisher.initialise()
    chunks: list[bytes] = []
    for counter, version in enumerate(versions, 1):
        file, chunks = publisher.make_file(folder / version, bytes(2000))
        await publisher.upload(chunks)
        await publisher.publish(publisher.manifest(file, version=version, counter=counter))
    return publisher, chunks


class Stream:
    """A Connect stream of the previous agent."""

    def __init__(self, box: Box) -> None:
        channel: Any = box.channel()
        self._call = channel.stream_stream(
            "/flotilla.v1.DeviceService/Connect",
            request_serializer=DEVICE.ConnectRequest.SerializeToString,
            response_deserializer=DEVICE.ConnectResponse.FromString,
        )()

    async def send(self, **message: Any) -> None:
        await self._call.write(DEVICE.ConnectRequest(**message))

    async def read(self, part: str) -> Any:
        """Read until a message has this part, and return the part."""
        while True:
            answer = await asyncio.wait_for(self._call.read(), PATIENCE_SECONDS)
            assert answer is not grpc.aio.EOF
            if answer.HasField(part):
                return getattr(answer, part)

    async def greet(self) -> None:
        await self.send(hello=DEVICE.Hello(boot_id="boot-1", agent_version="0.1.0"))
        settings = await self.read("settings")
        assert settings.telemetry_window_seconds > 0


def receipt(box: Box, generation: int, release: str, outcome: int) -> Any:
    data = DEVICE.Receipt(
        generation=generation,
        release=release,
        outcome=outcome,
        current_release=release,
        last_good_release=release,
    ).SerializeToString()
    signature = box.key.sign(data, ec.ECDSA(hashes.SHA256()))
    return DEVICE.SignedReceipt(receipt=data, signature=signature)


async def test_a_rollout_reaches_a_previous_agent_by_a_previous_operator(
    plane: Plane, tmp_path: Path
) -> None:
    _, chunks = await publish(plane, tmp_path, "1.0.0")
    box = await enroll(plane, "old")
    stream = Stream(box)
    await stream.greet()
    assert (await stream.read("assignment")).release == ""
    operator = plane.channel()
    start = ROLLOUT.StartRolloutRequest(
        request_id=request_id(),
        release="acme/chat@1.0.0",
        strategy="waves: [{name: all, percent: 100}]",
    )
    started = await call(operator, "RolloutService/StartRollout", start, "StartRolloutResponse")
    assignment = await stream.read("assignment")
    assert (assignment.generation, assignment.release) == (1, "acme/chat@1.0.0")
    assert assignment.director.targets
    assert assignment.director.timestamp

    metadata = DEVICE.FetchMetadataRequest(name="timestamp.json")
    answer = await call(
        box.channel(), "DeviceService/FetchMetadata", metadata, "FetchMetadataResponse"
    )
    assert b"timestamp" in answer.data
    digests = [hashlib.sha256(chunk).digest() for chunk in chunks]
    assert b"".join(await box.fetch(digests)) == b"".join(chunks)
    nothing_held = DEVICE.GetDeltaRequest(
        target=DEVICE.FileDigests(sha256=bytes(32), index=digests[0])
    )
    with contextlib.suppress(grpc.aio.AioRpcError):
        await call(box.channel(), "DeviceService/GetDelta", nothing_held, "GetDeltaResponse")

    for state in (DEVICE.UPDATE_STATE_FETCHING, DEVICE.UPDATE_STATE_PROBATION):
        await stream.send(status=DEVICE.UpdateStatus(generation=1, state=state))
    await stream.send(receipt=receipt(box, 1, assignment.release, DEVICE.UPDATE_STATE_COMMITTED))
    assert list((await stream.read("ack")).receipt_generations) == [1]

    watch: Any = operator.unary_stream(
        "/flotilla.v1.RolloutService/WatchRollout",
        request_serializer=ROLLOUT.WatchRolloutRequest.SerializeToString,
        response_deserializer=ROLLOUT.WatchRolloutResponse.FromString,
    )(ROLLOUT.WatchRolloutRequest(id=started.rollout.id), timeout=PATIENCE_SECONDS)
    last = [answer.rollout async for answer in watch][-1]
    assert last.state == ROLLOUT.ROLLOUT_STATE_SUCCEEDED
    assert [(one.name, one.state) for one in last.devices] == [("old", "succeeded")]


async def test_telemetry_and_renewal_of_a_previous_agent(plane: Plane, tmp_path: Path) -> None:
    await publish(plane, tmp_path, "1.0.0")
    box = await enroll(plane, "old")
    stream = Stream(box)
    await stream.greet()
    window = message(
        "TelemetryWindow",
        sequence=7,
        duration_seconds=2.0,
        release="acme/chat@1.0.0",
        slot="chat",
        model_version="acme/tiny@1",
        variant="q8",
        runtime="llama_cpp",
        requests=3,
        generated_tokens=30,
        decode_seconds=1.5,
    )
    window.started_at.GetCurrentTime()
    batch = DEVICE.TelemetryBatch(boot_id="boot-1", windows=[window])
    await stream.send(telemetry=batch)
    assert (await stream.read("ack")).telemetry_sequence == 7
    telemetry = previous_wire.module("telemetry")
    summary = await call(
        plane.channel(),
        "TelemetryService/SummarizeTelemetry",
        telemetry.SummarizeTelemetryRequest(),
        "SummarizeTelemetryResponse",
    )
    assert [row.requests for row in summary.rows] == [3]

    request = DEVICE.RenewCertificateRequest(csr_pem=box.csr())
    renewed = await call(
        box.channel(), "DeviceService/RenewCertificate", request, "RenewCertificateResponse"
    )
    box.certificate_pem = renewed.certificate_pem
    await Stream(box).greet()


async def test_a_previous_operator_sees_devices_of_both_releases(plane: Plane) -> None:
    await Publisher(plane).initialise()
    await enroll(plane, "old")
    new = await plane.enroll("new")
    life = await new.connect(agent_version="0.2.0", metadata_versions={"root": 1})
    fleet = previous_wire.module("fleet")
    listed = await call(
        plane.channel(),
        "FleetService/ListDevices",
        fleet.ListDevicesRequest(),
        "ListDevicesResponse",
    )
    assert [(one.name, one.connected) for one in listed.devices] == [("new", True), ("old", False)]
    assert listed.devices[1].facts.architecture == "aarch64"
    await life.end()
