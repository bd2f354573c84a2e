"""Requests that are too large, packed, garbled or misnamed, before a real control plane.

Each ends with its status and a text without control characters, and other callers are served.
"""

import asyncio
import contextlib
import json
import logging
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from control_plane import Box, Plane, Publisher, request_id, running_plane
from databases import fresh_postgres
from flotilla.v1 import (
    device_pb2,
    enrollment_pb2,
    fleet_pb2,
    model_pb2,
    rollout_pb2,
    rollout_pb2_grpc,
)

from controlplane.server.listeners import MAX_MESSAGE_BYTES
from tests.security.raw_callers import PATIENCE_SECONDS

Code = grpc.StatusCode
ENROLL = "/flotilla.v1.EnrollmentService/Enroll"
METADATA = device_pb2.FetchMetadataRequest(name="timestamp.json")
MIB = 1 << 20


@pytest.fixture(params=["sqlite", "postgres"])
async def plane(
    request: pytest.FixtureRequest, tmp_path: Path, require: Callable[..., None]
) -> AsyncIterator[Plane]:
    async with contextlib.AsyncExitStack() as stack:
        url = None
        if request.param == "postgres":
            url = await stack.enter_async_context(fresh_postgres(require))
        plane = await stack.enter_async_context(
            running_plane(tmp_path / "server", database_url=url)
        )
        await Publisher(plane).initialise()
        yield plane


@pytest.fixture
async def box(plane: Plane) -> Box:
    return await plane.enroll("honest")


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, PATIENCE_SECONDS)
    assert (caught.value.details() or "x").isprintable()
    return caught.value


def raw(channel: grpc.aio.Channel) -> Any:
    """Return a stub without types, so that a test can send anything."""
    return channel


async def everybody_is_served(plane: Plane, box: Box) -> None:
    await box.stub.FetchMetadata(METADATA)
    await plane.fleet().ListDevices(fleet_pb2.ListDevicesRequest())


async def test_a_message_beyond_the_bound_is_refused(plane: Plane, box: Box) -> None:
    credentials = grpc.ssl_channel_credentials(plane.ca_pem)
    unbounded = [("grpc.max_send_message_length", -1)]
    channel = grpc.aio.secure_channel(str(plane.endpoints.public), credentials, options=unbounded)
    message = bytes(MAX_MESSAGE_BYTES + 1)
    error = await refused(raw(plane.keep(channel)).unary_unary(ENROLL)(message))
    assert error.code() is Code.RESOURCE_EXHAUSTED
    await everybody_is_served(plane, box)


async def test_a_compressed_message_is_not_unpacked_beyond_the_bound(tmp_path: Path) -> None:
    """160 MiB compressed to 160 KB, to a server in a process whose memory is measured."""
    data_dir = tmp_path / "server"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "controlplane", "serve", "--data-dir", str(data_dir)),
        *("--public", "127.0.0.1:0", "--device", "127.0.0.1:0", "--http", "127.0.0.1:0"),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        while b"server_started" not in (line := await process.stderr.readline()):
            assert line, "it ended"
        context = json.loads((data_dir / "admin.json").read_text(encoding="utf-8"))
        before = peak_bytes(process.pid)
        channel = grpc.aio.secure_channel(
            context["server"],
            grpc.ssl_channel_credentials(context["ca_pem"].encode()),
            options=[("grpc.max_send_message_length", -1)],
            compression=grpc.Compression.Gzip,
        )
        async with channel:
            error = await refused(raw(channel).unary_unary(ENROLL)(bytes(160 * MIB)))
            assert error.code() is Code.RESOURCE_EXHAUSTED
        assert peak_bytes(process.pid) - before < 64 * MIB
    finally:
        process.kill()
        await process.wait()


def peak_bytes(process: int | str = "self") -> int:
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) << 10


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x0a\xff", b"\x0a\x05abc"])
async def test_what_is_no_request_says_so_and_leaves_no_trace_back(
    plane: Plane, box: Box, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    device, public = "/flotilla.v1.DeviceService/", raw(plane.channel(None))
    called = [public.unary_unary(ENROLL)(garbage)]
    called += [
        raw(box.channel()).unary_unary(device + method)(garbage)
        for method in ("FetchMetadata", "RenewCertificate", "GetDelta")
    ]
    stream = raw(box.channel()).stream_stream(device + "Connect")()
    await stream.write(garbage)
    fetch = raw(box.channel()).unary_stream(device + "FetchChunks")(garbage)
    for call in (*called, stream.read(), fetch.read()):
        error = await refused(call)
        assert error.code() is Code.INVALID_ARGUMENT
        assert "cannot be read" in str(error.details())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    await everybody_is_served(plane, box)


async def test_nothing_is_parsed_of_a_caller_who_is_not_known(plane: Plane) -> None:
    call = raw(plane.channel(None)).unary_unary("/flotilla.v1.FleetService/ListDevices")(
        b"\xff\xff"
    )
    assert (await refused(call)).code() is Code.UNAUTHENTICATED


async def test_a_call_without_a_request_says_so(plane: Plane) -> None:
    call = raw(plane.channel(None)).stream_unary(ENROLL)(nothing())
    error = await refused(call)
    assert (error.code(), "without its request" in str(error.details())) == (
        Code.INVALID_ARGUMENT,
        True,
    )


async def nothing() -> AsyncIterator[bytes]:
    none: tuple[bytes, ...] = ()
    for message in none:
        yield message


async def test_an_unknown_method_is_unknown(plane: Plane, box: Box) -> None:
    nowhere = ("EnrollmentService/Nothing", "Nothing/Enroll", "../../etc/passwd", "x" * 4000)
    for method in (*nowhere, "EnrollmentService/Enroll\x1b[31m"):
        call = raw(plane.channel()).unary_unary(f"/flotilla.v1.{method}")(b"")
        assert (await refused(call)).code() is Code.UNIMPLEMENTED
    await everybody_is_served(plane, box)


@pytest.mark.parametrize(
    "headers",
    [[("x", "y" * 100_000)], [(f"x{number}", "y" * 10) for number in range(3000)]],
    ids=["long", "many"],
)
async def test_metadata_beyond_the_bound_is_refused(
    plane: Plane, box: Box, headers: list[tuple[str, str]]
) -> None:
    call = raw(plane.channel(None)).unary_unary(ENROLL)(b"", metadata=headers)
    assert (await refused(call)).code() is Code.RESOURCE_EXHAUSTED
    await everybody_is_served(plane, box)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int = -1) -> bytes:
    """Make a frame (RFC 9113, section 4.1); ``length`` overrides the length in its header."""
    said = len(payload) if length < 0 else length
    return said.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


SETTINGS = PREFACE + frame(4, 0, 0)
FRAMES = {
    "garbage": bytes(range(256)) * 16,
    "http1": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "no preface": b"PRI * HTTP/9.9\r\n\r\n",
    "half a preface": PREFACE[:10],
    "a frame of 16 MiB": SETTINGS + frame(0, 0, 1, length=0xFFFFFF),
    "settings of a stream": PREFACE + frame(4, 0, 1),
    "data of no stream": SETTINGS + frame(0, 0, 1, b"x" * 100),
    "headers that are none": SETTINGS + frame(1, 4, 1, b"\xff" * 200),
    "headers without an end": SETTINGS
    + frame(1, 0, 1, b"\x82")
    + frame(9, 0, 1, b"\x00\x01a\x01b" * 2000) * 300,
    "a window beyond its bound": SETTINGS + frame(8, 0, 0, (2**31 - 1).to_bytes(4, "big")) * 2,
    "pings": SETTINGS + frame(6, 0, 0, b"12345678") * 20_000,
    "resets": SETTINGS + frame(3, 0, 1, bytes(4)) * 20_000,
    "settings": SETTINGS + frame(4, 0, 0) * 20_000,
}


async def test_broken_http2_ends_its_own_connection_at_most(plane: Plane, box: Box) -> None:
    context = ssl.create_default_context(cadata=plane.ca_pem.decode())
    context.set_alpn_protocols(["h2"])
    for name, sent in FRAMES.items():
        _, writer = await asyncio.open_connection(
            "127.0.0.1", plane.endpoints.public.port, ssl=context, server_hostname="localhost"
        )
        before = peak_bytes()
        for start in range(0, len(sent), 1 << 16):
            # The server may have closed the connection already.
            writer.write(sent[start : start + (1 << 16)])
        await everybody_is_served(plane, box)
        assert peak_bytes() - before < 64 * MIB, name
        writer.transport.abort()


PATHS = [
    "../../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "a/../b/",
    "a\x00b",
    "a\nb",
    "..\\..\\b",
    "%2e%2e%2f",
    "\u202ea",
    "x" * 100_000,
]


async def test_no_name_from_outside_becomes_a_path(plane: Plane, box: Box) -> None:
    """Devices, labels, metadata, releases and chunks: each is refused, and no file is made."""
    _, secret = await plane.join_token()
    files = files_of(plane)
    for name in PATHS:
        for call in calls_that_name(plane, box, secret, name):
            error = await refused(call)
            assert error.code() in {Code.INVALID_ARGUMENT, Code.NOT_FOUND}, name[:80]
    assert files_of(plane) == files
    await everybody_is_served(plane, box)


def files_of(plane: Plane) -> list[Path]:
    return sorted(path for path in plane.config.data_dir.rglob("*") if path.is_file())


def calls_that_name(plane: Plane, box: Box, secret: str, name: str) -> list[Any]:
    def application(**changes: Any) -> enrollment_pb2.EnrollRequest:
        fields = {"token": secret, "csr_pem": box.csr(), "name": "fine"}
        return enrollment_pb2.EnrollRequest(**fields | changes)

    enrollment, rollouts = plane.enrollment(), rollout_pb2_grpc.RolloutServiceStub(plane.channel())
    fetch = raw(box.channel()).unary_stream(
        "/flotilla.v1.DeviceService/FetchChunks",
        request_serializer=device_pb2.FetchChunksRequest.SerializeToString,
    )
    wanted = [name.encode()], [bytes(32), name.encode()]
    return [
        enrollment.Enroll(application(name=name)),
        enrollment.Enroll(application(labels={name: "x"})),
        enrollment.Enroll(application(labels={"site": name})),
        box.stub.FetchMetadata(device_pb2.FetchMetadataRequest(name=name)),
        plane.fleet().GetDevice(fleet_pb2.GetDeviceRequest(device=name)),
        plane.model().GetRelease(model_pb2.GetReleaseRequest(reference=name)),
        rollouts.StartRollout(
            rollout_pb2.StartRolloutRequest(request_id=request_id(), release=name)
        ),
        *(fetch(device_pb2.FetchChunksRequest(digests=digests)).read() for digests in wanted),
    ]


SELECTORS = [
    "site='; DROP TABLE devices; --",
    "site=x' OR '1'='1",
    'site="x" UNION SELECT secret FROM api_tokens',
    "site in (x'); DELETE FROM devices; --)",
    "(" * 10_000 + "site" + ")" * 10_000,
    "(" * 500 + ")" * 500,
    "!" * 1000,
    "site=" + "x" * 1_000_000,
    "site in (" + "," * 1000 + ")",
    "\u0455ite=lab",
    "site=\u202elab",
    "site=lab\x00",
]


async def test_a_selector_is_no_program(plane: Plane, box: Box) -> None:
    for selector in SELECTORS:
        request = fleet_pb2.ListDevicesRequest(selector=selector)
        error = await refused(plane.fleet().ListDevices(request))
        assert error.code() is Code.INVALID_ARGUMENT, selector[:80]
        assert len(str(error.details())) <= 1500
    await everybody_is_served(plane, box)
    listed = await plane.fleet().ListDevices(fleet_pb2.ListDevicesRequest())
    assert [device.name for device in listed.devices] == ["honest"]
