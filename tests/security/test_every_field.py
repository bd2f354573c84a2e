"""Every field of every request and stream message with impossible values, on both databases.

The requests are made from the protobuf descriptors, so a new RPC or field is covered by itself.
"""

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from control_plane import Box, Plane, Publisher, running_plane
from databases import fresh_postgres
from flotilla.v1 import (
    access_pb2,
    device_pb2,
    enrollment_pb2,
    fleet_pb2,
    model_pb2,
    rollout_pb2,
    server_keys_pb2,
    telemetry_pb2,
)
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from controlplane.api.roles import DEVICE, MINIMUM_ROLE, OPEN
from tests.security.hostile_requests import fields, requests

FILES = (
    access_pb2,
    enrollment_pb2,
    fleet_pb2,
    model_pb2,
    rollout_pb2,
    server_keys_pb2,
    telemetry_pb2,
)
Code = grpc.StatusCode
# Answers of a server that understood the request; everything else is a fault of ours.
SOUND = {
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.FAILED_PRECONDITION,
    Code.ALREADY_EXISTS,
    Code.ABORTED,
    Code.UNAUTHENTICATED,
}
# They change what the other calls need: the CA and the director's keys.
LEFT_OUT = {"RotateAuthority", "RetireAuthority", "RotateDirectorKey", "InitializeTrust"}


def methods() -> Iterator[MethodDescriptor]:
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                if path in (MINIMUM_ROLE.keys() | OPEN) and method.name not in LEFT_OUT:
                    yield method


@pytest.fixture(params=["sqlite", "postgres"])
async def plane(
    request: pytest.FixtureRequest, tmp_path: Path, require: Callable[..., None]
) -> AsyncIterator[Plane]:
    if request.param == "sqlite":
        async with running_plane(tmp_path / "server") as plane:
            await Publisher(plane).initialise()
            yield plane
        return
    async with (
        fresh_postgres(require) as url,
        running_plane(tmp_path / "server", database_url=url) as plane,
    ):
        await Publisher(plane).initialise()
        yield plane


async def call(channel: Any, method: MethodDescriptor, request: Message) -> grpc.StatusCode:
    path = f"/{method.containing_service.full_name}/{method.name}"
    packed = request.SerializeToString()
    try:
        match method.client_streaming, method.server_streaming:
            case False, False:
                await channel.unary_unary(path)(packed, timeout=20)
            case True, False:
                await channel.stream_unary(path)(iter([packed]), timeout=20)
            case False, True:
                stream = channel.unary_stream(path)(packed, timeout=20)
                await stream.read()
                stream.cancel()
    except grpc.aio.AioRpcError as error:
        return error.code()
    return Code.OK


async def test_no_field_makes_either_store_fail(
    plane: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    tried, failed = 0, []
    channel = plane.channel()
    for method in methods():
        for path, request in requests(method.input_type):
            code = await call(channel, method, request)
            tried += 1
            if code not in SOUND:
                value = str(request)[:80]
                failed.append(f"{method.full_name} {path}: {code.name} {value}")
    assert failed == []
    assert tried > 300
    assert not [record.message for record in caplog.records if record.levelname == "ERROR"]


async def test_no_field_of_a_devices_call_makes_either_store_fail(
    plane: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    channel = (await plane.enroll("box")).channel()
    service = device_pb2.DESCRIPTOR.services_by_name["DeviceService"]
    for method in service.methods:
        assert f"/{service.full_name}/{method.name}" in DEVICE
        if method.name != "Connect":
            for path, request in requests(method.input_type):
                assert await call(channel, method, request) in SOUND, f"{method.name} {path}"
    assert not [record.message for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("part", ["hello", "status", "receipt", "telemetry"])
async def test_no_field_of_a_devices_stream_makes_either_store_fail(
    plane: Plane, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    box = await plane.enroll("box")
    tried = 0
    for message in stream_messages(box, part):
        tried += 1
        with contextlib.suppress(grpc.aio.AioRpcError):
            await converse(box, message)
    assert tried > 30
    assert server_errors(caplog) == []


def server_errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return errors that the server logged.

    asyncio logs one of its own when a stream is cut in the middle of a query: asyncpg leaves the
    future of the connection that it closes then.
    """
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelname == "ERROR" and record.name != "asyncio"
    ]


def stream_messages(box: Box, part: str) -> Iterator[device_pb2.ConnectRequest]:
    """Make messages that are stored but for their one hostile field."""
    if part == "receipt":
        for number, (_, receipt) in enumerate(requests(device_pb2.Receipt.DESCRIPTOR), 1):
            receipt.generation = receipt.generation or number
            receipt.outcome = receipt.outcome or device_pb2.UPDATE_STATE_COMMITTED
            yield device_pb2.ConnectRequest(receipt=box.sign(receipt))
        return
    kind: Any = {
        "hello": device_pb2.Hello,
        "status": device_pb2.UpdateStatus,
        "telemetry": device_pb2.TelemetryBatch,
    }[part]
    for _, message in requests(kind.DESCRIPTOR):
        if part == "status":
            message.state = message.state or device_pb2.UPDATE_STATE_IDLE
        else:
            message.boot_id = message.boot_id or "boot"
        yield device_pb2.ConnectRequest(**{part: message})


async def converse(box: Box, message: device_pb2.ConnectRequest) -> None:
    stream = box.stub.Connect()
    if not message.HasField("hello"):
        hello = device_pb2.Hello(boot_id="boot")
        await stream.write(device_pb2.ConnectRequest(hello=hello))
    await stream.write(message)
    await stream.done_writing()
    while await stream.read() is not grpc.aio.EOF:
        pass


def test_the_requests_reach_nested_fields_and_maps() -> None:
    """The generator itself: a field that it skipped would never fail."""
    paths = {
        f"{method.name}.{path}"
        for method in methods()
        for path, _ in itertools.chain(fields(method.input_type))
    }
    assert {"ListDevices.page_token", "Enroll.labels.key", "StartRollout.strategy"} <= paths
