"""The Connect stream: assignments and settings go out, reports are stored once each."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from control_plane import Box, Clock, Life, Plane, Publisher, request_id, running_plane
from databases import fresh_postgres
from flotilla.v1 import (
    access_pb2,
    device_pb2,
    fleet_pb2,
    hardware_pb2,
    rollout_pb2,
    rollout_pb2_grpc,
    selection_pb2,
    telemetry_pb2,
    telemetry_pb2_grpc,
    telemetry_window_pb2,
)
from google.protobuf.timestamp_pb2 import Timestamp

Code = grpc.StatusCode
STRATEGY = "waves: [{name: all, percent: 100}]"


async def release(publisher: Publisher, path: Path, version: str, counter: int) -> str:
    file, chunks = publisher.make_file(path / "model.gguf", b"weights " + version.encode())
    await publisher.upload(chunks)
    made = await publisher.publish(publisher.manifest(file, version=version, counter=counter))
    return str(made.reference)


async def roll_out(plane: Plane, reference: str) -> None:
    stub: Any = rollout_pb2_grpc.RolloutServiceStub(plane.channel())
    await stub.StartRollout(
        rollout_pb2.StartRolloutRequest(
            request_id=request_id(), release=reference, strategy=STRATEGY
        )
    )


async def device(plane: Plane, name: str = "box-1") -> fleet_pb2.Device:
    answer = await plane.fleet().GetDevice(fleet_pb2.GetDeviceRequest(device=name))
    shown: fleet_pb2.Device = answer.device
    return shown


async def until_disconnected(plane: Plane) -> None:
    async with asyncio.timeout(10):
        while (await device(plane)).connected:
            pass


@contextlib.contextmanager
def refusal(code: Code, words: str) -> Iterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is code
    assert words in caught.value.details()


def stamp() -> Timestamp:
    made = Timestamp()
    made.FromDatetime(datetime.now(UTC))
    return made


def receipt(generation: int, reference: str, **more: Any) -> device_pb2.Receipt:
    decision = selection_pb2.SelectionDecision(
        slot="chat", model="acme/tiny@1", chosen_variant="q8", reason="the only one"
    )
    fields: dict[str, Any] = {
        "generation": generation,
        "release": reference,
        "outcome": device_pb2.UPDATE_STATE_COMMITTED,
        "bytes_downloaded": 123,
        "current_release": reference,
        "decisions": [decision],
        "finished_at": stamp(),
        **more,
    }
    return device_pb2.Receipt(**fields)


def window(sequence: int, **more: Any) -> telemetry_window_pb2.TelemetryWindow:
    fields: dict[str, Any] = {
        "sequence": sequence,
        "started_at": stamp(),
        "duration_seconds": 2.0,
        "release": "acme/chat@1",
        "slot": "chat",
        "variant": "q8",
        "requests": 1,
        "generated_tokens": 10,
        "decode_seconds": 0.5,
        "ttft_seconds": telemetry_window_pb2.Sketch(relative_accuracy=0.01, bins={-5: 1}, sum=0.9),
        **more,
    }
    return telemetry_window_pb2.TelemetryWindow(**fields)


async def summary(plane: Plane) -> list[Any]:
    stub: Any = telemetry_pb2_grpc.TelemetryServiceStub(plane.channel())
    answer = await stub.SummarizeTelemetry(telemetry_pb2.SummarizeTelemetryRequest())
    return list(answer.rows)


@pytest.fixture
async def box(plane: Plane, publisher: Publisher) -> Box:
    return await plane.enroll("box-1")


async def test_a_greeting_is_remembered(plane: Plane, box: Box) -> None:
    facts = hardware_pb2.HardwareFacts(cpu_model="ARM Cortex-A76", cores=4, isa=["neon"])
    facts.benchmark.memory_bytes_per_second = 1e9
    facts.benchmark.weight_bytes_per_second["q4_k"] = 5e8
    facts.topology.clusters.add(cores=4, max_megahertz=2400)
    facts.gpus.append("gpu (driver v3d)")
    life = await box.connect(facts=facts, agent_version="1.2.3", current_release="acme/chat@1")
    wanted = await life.read_assignment()
    assert (wanted.generation, wanted.release) == (0, "")
    shown = await device(plane)
    assert shown.connected
    assert shown.facts == facts
    assert shown.hardware_class
    assert (shown.agent_version, shown.current_release) == ("1.2.3", "acme/chat@1")
    await life.end()
    await until_disconnected(plane)


async def test_an_assignment_is_pushed_at_once_and_again_after_reconnecting(
    plane: Plane, publisher: Publisher, box: Box, tmp_path: Path
) -> None:
    reference = await release(publisher, tmp_path, "1.0.0", 1)
    life = await box.connect()
    await life.read_assignment()
    await roll_out(plane, reference)
    wanted = await asyncio.wait_for(life.read_assignment(), 10)
    assert (wanted.generation, wanted.release) == (1, reference)
    assert len(wanted.manifest_sha256) == 64
    await life.end()
    again = await box.connect()
    assert await again.read_assignment() == wanted


async def test_a_receipt_decides_the_rollout_and_is_stored_once(
    plane: Plane, publisher: Publisher, box: Box, tmp_path: Path
) -> None:
    reference = await release(publisher, tmp_path, "1.0.0", 1)
    life = await box.connect()
    await roll_out(plane, reference)
    while not (wanted := await life.read_assignment()).generation:
        pass
    signed = box.sign(receipt(wanted.generation, reference))
    for _ in range(2):
        await life.send(receipt=signed)
        assert list((await life.read_ack()).receipt_generations) == [1]
    answer = await plane.fleet().GetDevice(fleet_pb2.GetDeviceRequest(device="box-1"))
    assert [one.generation for one in answer.receipts] == [1]
    assert answer.device.update_state == device_pb2.UPDATE_STATE_COMMITTED
    assert answer.device.current_release == reference
    assert dict(answer.device.variants) == {"chat": "q8"}

    stub: Any = rollout_pb2_grpc.RolloutServiceStub(plane.channel())
    (rollout,) = (await stub.ListRollouts(rollout_pb2.ListRolloutsRequest())).rollouts
    async with asyncio.timeout(10):
        watch = stub.WatchRollout(rollout_pb2.WatchRolloutRequest(id=rollout.id))
        views = [view.rollout async for view in watch]
    assert views[-1].state == rollout_pb2.ROLLOUT_STATE_SUCCEEDED
    assert views[-1].devices[0].bytes_downloaded == 123

    explained = await plane.fleet().ExplainDevice(fleet_pb2.ExplainDeviceRequest(device="box-1"))
    assert explained.release == reference
    assert explained.decisions[0].chosen_variant == "q8"


async def test_a_box_that_went_back_to_nothing_is_explained_by_its_last_attempt(
    plane: Plane, box: Box
) -> None:
    life = await box.connect()
    rejected = {"outcome": device_pb2.UPDATE_STATE_REJECTED, "current_release": ""}
    nothing = {"current_release": "", "decisions": []}
    for signed in (receipt(1, "acme/chat@1", **rejected), receipt(2, "", **nothing)):
        await life.send(receipt=box.sign(signed))
        await life.read_ack()
    explained = await plane.fleet().ExplainDevice(fleet_pb2.ExplainDeviceRequest(device="box-1"))
    assert explained.release == "acme/chat@1"
    assert explained.decisions[0].reason == "the only one"


async def test_a_receipt_that_the_device_did_not_sign_ends_the_stream(
    plane: Plane, publisher: Publisher, box: Box
) -> None:
    other = Box("other", plane)
    life = await box.connect()
    await life.send(receipt=other.sign(receipt(1, "acme/chat@1")))
    with refusal(Code.INVALID_ARGUMENT, "not signed by the key"):
        await life.read_ack()
    answer = await plane.fleet().GetDevice(fleet_pb2.GetDeviceRequest(device="box-1"))
    assert not answer.receipts


async def test_a_receipt_cannot_end_in_the_middle(plane: Plane, box: Box) -> None:
    life = await box.connect()
    odd = receipt(1, "acme/chat@1", outcome=device_pb2.UPDATE_STATE_FETCHING)
    await life.send(receipt=box.sign(odd))
    with refusal(Code.INVALID_ARGUMENT, "must be final, not fetching"):
        await life.read_ack()


async def test_windows_are_stored_exactly_once(plane: Plane, box: Box) -> None:
    life = await box.connect()
    batches = [[window(1), window(2)], [window(2), window(3)], [window(1)]]
    acks = []
    for windows in batches:
        batch = device_pb2.TelemetryBatch(boot_id="boot-1", windows=windows)
        await life.send(telemetry=batch)
        acks.append((await life.read_ack()).telemetry_sequence)
    assert acks == [2, 3, 1]
    # Sequence numbers begin again with each boot.
    batch = device_pb2.TelemetryBatch(boot_id="boot-2", windows=[window(1)])
    await life.send(telemetry=batch)
    await life.read_ack()
    (row,) = await summary(plane)
    assert (row.group, row.requests, row.generated_tokens) == ("box-1", 4, 40)
    # Of ten tokens in half a second the first fell out of the prompt.
    assert row.tokens_per_second == pytest.approx(18)
    assert not row.HasField("joules")


async def test_an_impossible_window_is_dropped_and_acknowledged(plane: Plane, box: Box) -> None:
    life = await box.connect()
    bad = [window(2, decode_seconds=float("nan")), window(3, release="x" * 300)]
    batch = device_pb2.TelemetryBatch(boot_id="boot-1", windows=[window(1), *bad])
    await life.send(telemetry=batch)
    assert (await life.read_ack()).telemetry_sequence == 3
    (row,) = await summary(plane)
    assert row.requests == 1


async def test_the_newest_health_is_shown_and_stays_until_the_next(plane: Plane, box: Box) -> None:
    life = await box.connect()
    assert not (await device(plane)).HasField("health")

    async def report(**change: Any) -> Any:
        status = device_pb2.UpdateStatus(state=device_pb2.UPDATE_STATE_IDLE, **change)
        await life.send(status=status)
        await life.send(telemetry=device_pb2.TelemetryBatch(boot_id="boot-1"))
        await life.read_ack()
        return await device(plane)

    chat = device_pb2.SlotHealth(slot="chat", ready=False, worker_restarts=2, requests=27, errors=9)
    health = device_pb2.ReleaseHealth(release="acme/chat@1", slots=[chat])
    shown = await report(health=health)
    assert shown.health == health
    assert shown.HasField("health_at")
    # An agent of an earlier version reports none.
    assert (await report()).health == health
    many = device_pb2.ReleaseHealth(
        release="x" * 5000, slots=[device_pb2.SlotHealth(slot=f"s{n}" * 200) for n in range(99)]
    )
    shown = await report(health=many)
    assert len(shown.health.slots) == 32
    assert len(shown.health.release) <= 256
    assert len(shown.health.slots[0].slot) <= 256
    assert (await report(health=device_pb2.ReleaseHealth())).health == device_pb2.ReleaseHealth()


async def test_progress_is_shown(plane: Plane, box: Box) -> None:
    life = await box.connect()
    status = device_pb2.UpdateStatus(
        generation=3,
        state=device_pb2.UPDATE_STATE_FETCHING,
        detail="chunk 5 of 9",
        bytes_done=5,
        bytes_total=9,
    )
    await life.send(status=status)
    await life.send(telemetry=device_pb2.TelemetryBatch(boot_id="boot-1"))
    await life.read_ack()
    shown = await device(plane)
    assert shown.update_state == device_pb2.UPDATE_STATE_FETCHING
    assert shown.update_detail == "chunk 5 of 9"


async def test_a_newer_stream_replaces_the_older(plane: Plane, box: Box) -> None:
    older = await box.connect()
    await older.read_assignment()
    newer = await box.connect()
    with refusal(Code.ABORTED, "newer stream"):
        await older.read()
    # The end of the older stream must not mark the device as absent.
    await newer.send(telemetry=device_pb2.TelemetryBatch(boot_id="boot-1"))
    await newer.read_ack()
    assert (await device(plane)).connected


async def test_a_box_that_vanishes_is_noticed(plane: Plane, box: Box) -> None:
    life = await box.connect()
    assert (await device(plane)).connected
    life.call.cancel()
    await until_disconnected(plane)


async def test_a_stopping_server_ends_its_streams(tmp_path: Path, clock: Clock) -> None:
    started = time.monotonic()
    async with running_plane(tmp_path / "server", clock, shutdown_grace_seconds=60) as plane:
        await Publisher(plane).initialise()
        life = await (await plane.enroll("box-1")).connect()
        await life.read_assignment()
        reading = asyncio.create_task(life.read())
        channels, plane._channels = plane._channels, []
    # The open stream did not delay the shutdown, and got a status.
    assert time.monotonic() - started < 30
    with refusal(Code.UNAVAILABLE, "stopping"):
        await reading
    for channel in channels:
        await channel.close()


async def test_a_stream_opens_with_hello(plane: Plane, box: Box) -> None:
    call = box.stub.Connect()
    await call.write(device_pb2.ConnectRequest(status=device_pb2.UpdateStatus()))
    with refusal(Code.INVALID_ARGUMENT, "open with hello"):
        await Life(box, call).read()


async def test_a_storm_is_told_when_to_come_back(tmp_path: Path, clock: Clock) -> None:
    limits = {"connect_burst": 1, "connects_per_second": 0.1}
    async with running_plane(tmp_path / "busy", clock, **limits) as plane:
        await Publisher(plane).initialise()
        box = await plane.enroll("box-1")
        await box.connect()
        call = box.stub.Connect()
        await call.write(device_pb2.ConnectRequest(hello=device_pb2.Hello(boot_id="b")))
        with refusal(Code.RESOURCE_EXHAUSTED, "are connecting"):
            await call.read()
        trailing = dict(await call.trailing_metadata())
        assert 1000 <= int(trailing["flotilla-retry-after-ms"]) <= 10000


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_a_restart_keeps_everything(
    tmp_path: Path, clock: Clock, require: Callable[..., None], database: str
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        settings = {}
        if database == "postgres":
            settings["database_url"] = await stack.enter_async_context(fresh_postgres(require))
        await live_twice(tmp_path, clock, settings)


async def live_twice(tmp_path: Path, clock: Clock, settings: dict[str, Any]) -> None:
    async with running_plane(tmp_path / "server", clock, **settings) as plane:
        publisher = Publisher(plane)
        await publisher.initialise()
        box = await plane.enroll("box-1")
        reference = await release(publisher, tmp_path, "1.0.0", 1)
        life = await box.connect()
        await roll_out(plane, reference)
        while not (wanted := await life.read_assignment()).generation:
            pass
        admin, ca_pem = plane.admin_token, plane.ca_pem
        # The server stops while the stream is open.
    async with running_plane(tmp_path / "server", clock, **settings) as plane:
        assert (plane.admin_token, plane.ca_pem) == (admin, ca_pem)
        assert (await device(plane)).assigned_generation == wanted.generation
        box.plane = plane
        again = await box.connect()
        assert await again.read_assignment() == wanted
        assert b"weights 1.0.0" in b"".join(
            await box.fetch([bytes.fromhex(sha256("weights 1.0.0"))])
        )
        events = await plane.access().ListAuditEvents(access_pb2.ListAuditEventsRequest())
        actions = [event.action for event in events.events]
        assert actions == [
            "rollout.start",
            "release.publish",
            "device.enroll",
            "join-token.create",
            "trust.initialise",
            "api-token.create",
        ]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
