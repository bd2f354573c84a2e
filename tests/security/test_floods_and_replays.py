"""Floods and replays by a device or by strangers do not affect honest callers."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from control_plane import Box, Life, Plane, Publisher, running_plane
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from flotilla.v1 import (
    access_pb2,
    device_pb2,
    enrollment_pb2,
    fleet_pb2,
    telemetry_pb2,
    telemetry_pb2_grpc,
    telemetry_window_pb2,
)
from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.api.device import MAX_DOWNLOADS
from controlplane.store import receipts

Code = grpc.StatusCode
PATIENCE_SECONDS = 60
GUESSES = 200
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
# Control characters of terminals, log lines and exposition formats.
CODES = 'x\r\nforged 1\n# HELP forged\x1b[31m\x1b]0;owned\x07\u202e\u2066"} 2\x00y'


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with running_plane(tmp_path / "server") as plane:
        await Publisher(plane).initialise()
        yield plane


def now() -> Timestamp:
    made = Timestamp()
    made.FromDatetime(datetime.now(UTC))
    return made


def window(sequence: int, requests: int = 1, **more: Any) -> telemetry_window_pb2.TelemetryWindow:
    return telemetry_window_pb2.TelemetryWindow(
        sequence=sequence, started_at=now(), duration_seconds=2, requests=requests, **more
    )


def batch(*windows: telemetry_window_pb2.TelemetryWindow) -> device_pb2.TelemetryBatch:
    return device_pb2.TelemetryBatch(boot_id="boot-1", windows=windows)


def receipt(generation: int = 1, release: str = "acme/chat@1", **more: Any) -> device_pb2.Receipt:
    return device_pb2.Receipt(
        generation=generation,
        release=release,
        outcome=device_pb2.UPDATE_STATE_REJECTED,
        finished_at=now(),
        **more,
    )


async def refused(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, PATIENCE_SECONDS)
    return caught.value


async def device(plane: Plane, name: str) -> fleet_pb2.GetDeviceResponse:
    answer: fleet_pb2.GetDeviceResponse = await plane.fleet().GetDevice(
        fleet_pb2.GetDeviceRequest(device=name)
    )
    return answer


async def requests_of(plane: Plane, name: str) -> int:
    stub: Any = telemetry_pb2_grpc.TelemetryServiceStub(plane.channel())
    answer = await stub.SummarizeTelemetry(telemetry_pb2.SummarizeTelemetryRequest())
    return sum(row.requests for row in answer.rows if row.group == name)


async def is_heard(plane: Plane, life: Life, name: str, generation: int) -> None:
    """Check that an honest device can connect and report, and that its operator sees it."""
    await life.send(status=device_pb2.UpdateStatus(state=device_pb2.UPDATE_STATE_IDLE))
    await life.send(telemetry=batch(window(generation)))
    assert (await life.read_ack()).telemetry_sequence == generation
    await life.send(receipt=life.box.sign(receipt(generation)))
    assert list((await life.read_ack()).receipt_generations) == [generation]
    assert generation in {one.generation for one in (await device(plane, name)).receipts}


async def test_a_replayed_window_with_other_content_changes_nothing(plane: Plane) -> None:
    box = await plane.enroll("box-1")
    life = await box.connect()
    for requests in (3, 1000):
        await life.send(telemetry=batch(window(1, requests)))
        assert (await life.read_ack()).telemetry_sequence == 1
    # Out of order and from another boot: new windows count, repeated ones do not.
    await life.end()
    life = await box.connect()
    await life.send(telemetry=batch(window(3, 10), window(2, 10), window(1, 1000)))
    await life.read_ack()
    assert await requests_of(plane, "box-1") == 23


async def test_a_replayed_receipt_with_other_content_changes_nothing(plane: Plane) -> None:
    box = await plane.enroll("box-1")
    life = await box.connect()
    for release in ("acme/chat@1", "acme/evil@1"):
        await life.send(receipt=box.sign(receipt(2, release)))
        assert list((await life.read_ack()).receipt_generations) == [2]
    # An older receipt that arrives later is stored but does not replace the newer state.
    await life.send(receipt=box.sign(receipt(1, "acme/old@1", current_release="acme/old@1")))
    await life.read_ack()
    shown = await device(plane, "box-1")
    assert {one.generation: one.release for one in shown.receipts} == {
        1: "acme/old@1",
        2: "acme/chat@1",
    }
    assert shown.device.current_release != "acme/old@1"


async def test_receipts_of_generations_that_were_never_given_fill_no_disk(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "MAX_RECEIPTS", 3)
    loud, quiet = await plane.enroll("loud"), await plane.enroll("quiet")
    life, honest = await loud.connect(), await quiet.connect()
    await is_heard(plane, honest, "quiet", 1)
    for generation in (5, 9, 7, 6, 8, 1):
        await life.send(receipt=loud.sign(receipt(generation)))
        assert list((await life.read_ack()).receipt_generations) == [generation]
    assert [one.generation for one in (await device(plane, "loud")).receipts] == [9, 8, 7]
    assert [one.generation for one in (await device(plane, "quiet")).receipts] == [1]


def flipped(signed: device_pb2.SignedReceipt) -> device_pb2.SignedReceipt:
    signature = bytes([*signed.signature[:-1], signed.signature[-1] ^ 1])
    return device_pb2.SignedReceipt(receipt=signed.receipt, signature=signature)


def altered(signed: device_pb2.SignedReceipt) -> device_pb2.SignedReceipt:
    changed = signed.receipt.replace(b"acme/chat", b"acme/evil")
    return device_pb2.SignedReceipt(receipt=changed, signature=signed.signature)


def unsigned(signed: device_pb2.SignedReceipt) -> device_pb2.SignedReceipt:
    return device_pb2.SignedReceipt(receipt=signed.receipt)


def padded(signed: device_pb2.SignedReceipt) -> device_pb2.SignedReceipt:
    return device_pb2.SignedReceipt(receipt=signed.receipt, signature=signed.signature + b"\x00")


@pytest.mark.parametrize("forge", [flipped, altered, unsigned, padded])
async def test_a_receipt_that_was_touched_is_refused(plane: Plane, forge: Any) -> None:
    box = await plane.enroll("box-1")
    life = await box.connect()
    await life.send(receipt=forge(box.sign(receipt())))
    error = await refused(life.read_ack())
    assert (error.code(), "not signed by the key" in str(error.details())) == (
        Code.INVALID_ARGUMENT,
        True,
    )
    assert not (await device(plane, "box-1")).receipts


async def test_the_other_signature_of_the_same_receipt_is_the_same_receipt(plane: Plane) -> None:
    """From an ECDSA signature (r, s) anyone can make the valid (r, -s); it has no effect."""
    box = await plane.enroll("box-1")
    life = await box.connect()
    signed = box.sign(receipt())
    r, s = decode_dss_signature(signed.signature)
    twin = encode_dss_signature(r, P256_ORDER - s)
    for signature in (signed.signature, twin):
        await life.send(
            receipt=device_pb2.SignedReceipt(receipt=signed.receipt, signature=signature)
        )
        await life.read_ack()
    assert len((await device(plane, "box-1")).receipts) == 1


async def test_a_device_that_floods_its_stream_holds_up_nobody(plane: Plane) -> None:
    loud, quiet = await plane.enroll("loud"), await plane.enroll("quiet")
    life, honest = await loud.connect(), await quiet.connect("boot-1")

    async def flood() -> None:
        for number in range(10**9):
            status = device_pb2.UpdateStatus(
                state=device_pb2.UPDATE_STATE_FETCHING, detail="x" * 4000, bytes_done=number
            )
            await life.send(status=status)
            await life.send(telemetry=batch(*(window(number * 50 + each) for each in range(50))))

    flooding = asyncio.create_task(flood())
    async with asyncio.timeout(PATIENCE_SECONDS):
        for generation in range(1, 6):
            await is_heard(plane, honest, "quiet", generation)
    # The server handles one message at a time, so the device has to wait.
    assert not flooding.done()
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)
    life.call.cancel()


async def test_a_device_that_opens_streams_without_end_has_one(plane: Plane) -> None:
    loud, quiet = await plane.enroll("loud"), await plane.enroll("quiet")
    honest = await quiet.connect()
    lives = [await loud.connect(f"boot-{number}") for number in range(50)]
    for life in lives[:-1]:
        error = await refused(drained(life))
        assert "newer stream" in str(error.details())
    await is_heard(plane, honest, "quiet", 1)
    metrics = await page(plane, "/metrics")
    assert "flotilla_device_streams 2.0" in metrics.splitlines()


async def test_a_device_that_never_reads_its_downloads_has_a_few(
    plane: Plane, tmp_path: Path
) -> None:
    publisher = Publisher(plane)
    _, chunks = publisher.make_file(tmp_path / "model", bytes(range(256)) * (64 << 10))
    await publisher.upload(chunks)
    digests = [hashlib.sha256(chunk).digest() for chunk in chunks] * 64
    loud, quiet = await plane.enroll("loud"), await plane.enroll("quiet")
    downloads = [await unread(loud, digests) for _ in range(MAX_DOWNLOADS)]
    error = await refused((await unread(loud, digests)).read())
    assert (error.code(), "this device has 8 calls of this kind open" in str(error.details())) == (
        Code.RESOURCE_EXHAUSTED,
        True,
    )
    assert await quiet.fetch(digests[:2])
    # A download that ends frees its place.
    downloads[0].cancel()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                await loud.fetch(digests[:2])
                break
            except grpc.aio.AioRpcError:
                pass
    for download in downloads:
        download.cancel()


async def unread(box: Box, digests: list[bytes]) -> Any:
    """Start a download and read only its first message."""
    channel: Any = box.channel()
    call = channel.unary_stream(
        "/flotilla.v1.DeviceService/FetchChunks",
        request_serializer=device_pb2.FetchChunksRequest.SerializeToString,
    )(device_pb2.FetchChunksRequest(digests=digests))
    await call.initial_metadata()
    return call


async def drained(life: Life) -> None:
    while True:
        await life.read()


async def page(plane: Plane, path: str) -> str:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://{plane.endpoints.http}{path}")).text


async def test_guessing_a_join_token_gains_nothing_and_holds_up_nobody(plane: Plane) -> None:
    _, secret = await plane.join_token(uses=1)
    stranger = Box("stranger", plane)
    csr, stub = stranger.csr(), plane.enrollment()
    honest = asyncio.create_task(plane.enroll("honest"))
    wrong = [f"{secret[:-2]}{number:02x}" for number in range(256)]
    wrong = [guess for guess in wrong if guess != secret][:GUESSES]
    # At most as many at once as calls on one connection.
    for start in range(0, GUESSES, 50):
        calls = [
            stub.Enroll(enrollment_pb2.EnrollRequest(token=guess, csr_pem=csr, name="guess"))
            for guess in wrong[start : start + 50]
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert {getattr(answer, "code", str)() for answer in answers} == {Code.UNAUTHENTICATED}
    await (await honest).connect()
    # No use was spent, and only a count is kept. A secret of 24 random bytes cannot be guessed.
    await plane.enroll("late", secret)
    listed = await plane.fleet().ListDevices(fleet_pb2.ListDevicesRequest())
    assert {each.name for each in listed.devices} == {"honest", "late"}
    assert len(secret) >= 32
    events = (await plane.access().ListAuditEvents(access_pb2.ListAuditEventsRequest())).events
    assert len(events) < 20
    counted = [
        line
        for line in (await page(plane, "/metrics")).splitlines()
        if line.startswith("flotilla_calls_total") and "UNAUTHENTICATED" in line
    ]
    assert [float(line.split()[-1]) for line in counted] == [GUESSES]


async def test_a_flood_of_signing_requests_leaves_one_good_certificate(plane: Plane) -> None:
    loud, quiet = await plane.enroll("loud"), await plane.enroll("quiet")
    honest = await quiet.connect()
    request = device_pb2.RenewCertificateRequest(csr_pem=loud.csr())
    stub = loud.stub
    asked = asyncio.gather(*(stub.RenewCertificate(request) for _ in range(100)))
    await is_heard(plane, honest, "quiet", 1)
    issued = [answer.certificate_pem for answer in await asked]
    huge = device_pb2.RenewCertificateRequest(csr_pem=b"x" * 10**6)
    assert (await refused(stub.RenewCertificate(huge))).code() is Code.INVALID_ARGUMENT
    serials = {x509.load_pem_x509_certificate(pem).serial_number for pem in issued}
    assert len(serials) == len(issued) == 100
    # The device lost answers: only its last certificate and the one in use are accepted.
    codes = [await opens(loud, pem) for pem in issued]
    assert codes.count(Code.OK) == 1
    assert set(codes) == {Code.OK, Code.PERMISSION_DENIED}


async def opens(box: Box, certificate_pem: bytes) -> Code:
    box.certificate_pem = certificate_pem
    try:
        await box.stub.FetchMetadata(device_pb2.FetchMetadataRequest(name="timestamp.json"))
    except grpc.aio.AioRpcError as error:
        return error.code()
    return Code.OK


async def test_what_a_device_says_forges_no_metric_no_audit_event_and_no_log_line(
    plane: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="controlplane")
    box = await plane.enroll("box-1")
    life = await box.connect(agent_version=CODES, current_release=CODES)
    await life.send(
        status=device_pb2.UpdateStatus(state=device_pb2.UPDATE_STATE_FETCHING, detail=CODES)
    )
    check = device_pb2.ProbationCheck(slot=CODES, name=CODES, outcome=CODES, detail=CODES)
    said = receipt(1, CODES, reason=CODES, detail=CODES, checks=[check])
    await life.send(receipt=box.sign(said))
    await life.read_ack()
    await life.send(telemetry=batch(window(1, release=CODES, slot=CODES, variant=CODES)))
    await life.read_ack()
    labels = {CODES: CODES}
    application = enrollment_pb2.EnrollRequest(token=CODES, csr_pem=b"x", name=CODES, labels=labels)
    await refused(plane.enrollment().Enroll(application))
    await life.end()
    metrics = await page(plane, "/metrics")
    assert "forged" not in metrics
    assert metrics.replace("\n", "").isprintable()
    events = (await plane.access().ListAuditEvents(access_pb2.ListAuditEventsRequest())).events
    assert [event.action for event in events if "forged" in str(event)] == []
    messages = [record.getMessage() for record in caplog.records]
    assert any("receipt_stored" in message for message in messages)
    assert [message for message in messages if not message.isprintable()] == []
