"""Callers that hold connections open and send little, before a real control plane.

An honest device, an operator and a monitor are served meanwhile, and the connections end.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
import pytest
from control_plane import Box, Plane, Publisher, running_plane
from flotilla.v1 import device_pb2, fleet_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from controlplane.api import interceptor
from tests.security.raw_callers import PATIENCE_SECONDS, Callers, rest

CALLERS = 200
PORTS = ["public", "device", "http"]
HTTP_HEAD = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n"
ENROLL = "/flotilla.v1.EnrollmentService/Enroll"
METADATA = device_pb2.FetchMetadataRequest(name="timestamp.json")


@pytest.fixture
async def callers() -> AsyncIterator[Callers]:
    callers = Callers()
    yield callers
    callers.close()


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with running_plane(tmp_path / "server") as plane:
        await Publisher(plane).initialise()
        yield plane


@pytest.fixture
async def hurried(tmp_path: Path) -> AsyncIterator[Plane]:
    """Run a control plane with time limits too short for honest callers on a busy machine."""
    async with running_plane(tmp_path / "server", handshake_seconds=1, http_seconds=1) as plane:
        yield plane


def client_hello() -> bytes:
    """Return the first flight of a TLS handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    handshake = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        handshake.do_handshake()
    return outgoing.read()


def port_of(plane: Plane, name: str) -> int:
    return int(getattr(plane.endpoints, name).port)


async def everybody_is_served(plane: Plane, box: Box) -> None:
    """Check that honest callers are served over new connections."""
    await box.stub.FetchMetadata(METADATA, timeout=PATIENCE_SECONDS)
    life = await box.connect()
    await life.read_assignment()
    listed = await plane.fleet().ListDevices(fleet_pb2.ListDevicesRequest(), timeout=15)
    assert [device.name for device in listed.devices] == ["honest"]
    async with httpx.AsyncClient(base_url=f"http://{plane.endpoints.http}") as monitor:
        for page in ("/healthz", "/readyz", "/metrics"):
            assert (await monitor.get(page, timeout=PATIENCE_SECONDS)).status_code == 200
    await life.end()


async def test_half_open_handshakes_and_silent_connections_hold_up_nobody(
    plane: Plane, callers: Callers
) -> None:
    box = await plane.enroll("honest")
    hello = client_hello()
    for port in PORTS:
        half = HTTP_HEAD if port == "http" else hello
        for sent in (b"", half):
            for _ in range(CALLERS):
                await callers.call(port_of(plane, port), sent)
    await everybody_is_served(plane, box)


@pytest.mark.parametrize("half", [False, True], ids=["silent", "half-open"])
@pytest.mark.parametrize("port", PORTS)
async def test_half_open_handshakes_and_silent_connections_are_let_go(
    hurried: Plane, callers: Callers, port: str, half: bool
) -> None:
    sent = b"" if not half else HTTP_HEAD if port == "http" else client_hello()
    held = [await callers.call(port_of(hurried, port), sent) for _ in range(20)]
    await asyncio.gather(*map(rest, held))


@pytest.mark.parametrize(
    "sent",
    [
        HTTP_HEAD + b"content-length: 1000000\r\n\r\nx",
        # Many responses, which the caller does not read.
        (HTTP_HEAD + b"\r\n") * 10_000,
    ],
    ids=["body", "unread"],
)
async def test_a_page_of_plain_http_takes_no_longer_than_it_may(
    hurried: Plane, callers: Callers, sent: bytes
) -> None:
    held = [
        await callers.call(port_of(hurried, "http"), sent, receive_bytes=4096) for _ in range(5)
    ]
    await asyncio.gather(*map(rest, held))


@pytest.mark.parametrize("method", [ENROLL, "/flotilla.v1.FleetService/ListDevices"])
async def test_calls_whose_request_never_comes_are_ended(
    plane: Plane, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "REQUEST_SECONDS", 0.5)
    channels: list[Any] = [plane.channel() for _ in range(100)]
    calls = [channel.stream_unary(method)(until_the_end()) for channel in channels]
    endings = await asyncio.gather(*calls, return_exceptions=True)
    assert {end.code() for end in endings if isinstance(end, grpc.aio.AioRpcError)} == {
        grpc.StatusCode.DEADLINE_EXCEEDED
    }
    monkeypatch.undo()
    await everybody_is_served(plane, await plane.enroll("honest"))


async def until_the_end() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def test_a_stream_on_which_no_hello_comes_is_ended(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.api.device_stream.HELLO_SECONDS", 0.5)
    box = await plane.enroll("honest")
    calls = [box.stub.Connect() for _ in range(20)]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await asyncio.wait_for(call.read(), PATIENCE_SECONDS)
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await everybody_is_served(plane, box)


REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
LIST_SERVICES = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()


def reflection_streams(plane: Plane, number: int) -> list[Any]:
    """Open reflection streams without a token, 100 to a connection, and keep them open."""
    channels: list[Any] = [plane.channel(None) for _ in range(1 + number // 100)]
    return [channels[one // 100].stream_stream(REFLECTION)() for one in range(number)]


async def ending(call: Any) -> grpc.StatusCode:
    """Read until the stream ends, and return its status."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    return cast(grpc.StatusCode, await call.code())


async def test_health_can_be_checked_and_not_watched_without_a_token(plane: Plane) -> None:
    stub = health_pb2_grpc.HealthStub(plane.channel(None))
    answer = await stub.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert await ending(stub.Watch(health_pb2.HealthCheckRequest())) is (
        grpc.StatusCode.UNIMPLEMENTED
    )


async def test_one_address_holds_few_streams_without_a_token(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "OPEN_STREAM_SECONDS", 5.0)
    box = await plane.enroll("honest")
    calls = reflection_streams(plane, interceptor.MAX_OPEN_CALLS + 50)
    waiting = [asyncio.create_task(ending(call)) for call in calls]
    refused, open_still = await asyncio.wait(waiting, timeout=2.5)
    assert {task.result() for task in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(open_still) <= interceptor.MAX_OPEN_CALLS
    await everybody_is_served(plane, box)
    # The streams that were let in end as well, although their caller keeps them open.
    assert set(await asyncio.gather(*open_still)) == {grpc.StatusCode.DEADLINE_EXCEEDED}
    (again,) = reflection_streams(plane, 1)
    await again.write(LIST_SERVICES)
    services = reflection_pb2.ServerReflectionResponse.FromString(await again.read())
    assert "flotilla.v1.FleetService" in str(services)
    again.cancel()


async def test_a_health_check_whose_request_never_comes_is_ended(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "REQUEST_SECONDS", 0.5)
    channel: Any = plane.channel(None)
    calls = [
        channel.stream_unary("/grpc.health.v1.Health/Check")(until_the_end()) for _ in range(20)
    ]
    endings = await asyncio.wait_for(
        asyncio.gather(*calls, return_exceptions=True), PATIENCE_SECONDS
    )
    assert {end.code() for end in endings if isinstance(end, grpc.aio.AioRpcError)} == {
        grpc.StatusCode.DEADLINE_EXCEEDED
    }


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:51000", "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:51000", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:1", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:51000", "192.0.2.7"),
        ("unix:/run/flotilla.sock", "unix:/run/flotilla.sock"),
    ],
)
def test_callers_are_counted_by_address(peer: str, address: str) -> None:
    assert interceptor.caller_address(peer) == address
