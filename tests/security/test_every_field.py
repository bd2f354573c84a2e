"""Every field of every public RPC with values that one of the databases refuses, on both of them.

The requests are made from the protobuf descriptors, so a new RPC or field is covered by itself.
"""

import base64
import itertools
import math
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from control_plane import Plane, Publisher, running_plane
from databases import fresh_postgres
from flotilla.v1 import (
    access_pb2,
    enrollment_pb2,
    fleet_pb2,
    model_pb2,
    rollout_pb2,
    server_keys_pb2,
    telemetry_pb2,
)
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from controlplane.api.roles import MINIMUM_ROLE, OPEN

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
STRINGS = ("a\0b", "\0", "x" * 70_000, "\u202e", "'; DROP TABLE devices; --", "[" * 60_000)
TOKENS = tuple(
    base64.urlsafe_b64encode(key.encode()).decode()
    for key in ("a\0b", "9" * 40, "-1", "\u0661\u0662", "x" * 300)
)


def methods() -> Iterator[MethodDescriptor]:
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                if path in (MINIMUM_ROLE.keys() | OPEN) and method.name not in LEFT_OUT:
                    yield method


def hostile(field: FieldDescriptor) -> tuple[Any, ...]:
    kinds = FieldDescriptor
    if field.name == "page_token":
        return (*STRINGS, *TOKENS, "!", "=")
    return {
        kinds.CPPTYPE_STRING: (b"\0", b"\xff" * 100) if field.type == kinds.TYPE_BYTES else STRINGS,
        kinds.CPPTYPE_UINT64: ((1 << 64) - 1, 1 << 63),
        kinds.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
        kinds.CPPTYPE_UINT32: ((1 << 32) - 1,),
        kinds.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
        kinds.CPPTYPE_DOUBLE: (math.nan, math.inf, -math.inf, -1.0, 1e308),
        kinds.CPPTYPE_FLOAT: (math.nan, math.inf),
        kinds.CPPTYPE_ENUM: (99,),
        kinds.CPPTYPE_BOOL: (True,),
    }[field.cpp_type]


def requests(method: MethodDescriptor) -> Iterator[tuple[str, Message]]:
    """Yield a request per field and hostile value, with the field's path; others have defaults."""
    make = message_factory.GetMessageClass(method.input_type)
    yield "", make()
    for path, fill in fields(method.input_type):
        for value in fill.values:
            message = make()
            fill.put(message, value)
            yield path, message


class Fill:
    """Sets one field of a message, at any depth."""

    def __init__(self, steps: tuple[FieldDescriptor, ...]) -> None:
        self.steps = steps
        self.values = hostile(steps[-1])

    def put(self, message: Any, value: Any) -> None:
        *outer, last = self.steps
        for field in outer:
            inner = getattr(message, field.name)
            if field.message_type.GetOptions().map_entry:
                if last.name == "key":
                    kind = field.message_type.fields_by_name["value"].type
                    plain = {last.TYPE_STRING: "v", last.TYPE_BYTES: b"v"}
                    inner[value] = plain.get(kind, 1)
                else:
                    inner["k"] = value
                return
            message = inner.add() if field.is_repeated else inner
            if hasattr(message, "SetInParent"):
                message.SetInParent()
        if last.is_repeated:
            getattr(message, last.name).append(value)
        else:
            setattr(message, last.name, value)


def fields(message: Any, above: tuple[FieldDescriptor, ...] = ()) -> Iterator[tuple[str, Fill]]:
    for field in message.fields:
        steps = (*above, field)
        if field.message_type is None:
            yield ".".join(one.name for one in steps), Fill(steps)
        elif len(above) < 4:
            yield from fields(field.message_type, steps)


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


async def call(plane: Plane, method: MethodDescriptor, request: Message) -> grpc.StatusCode:
    channel: Any = plane.channel()
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
    for method in methods():
        for path, request in requests(method):
            code = await call(plane, method, request)
            tried += 1
            if code not in SOUND:
                value = str(request)[:80]
                failed.append(f"{method.full_name} {path}: {code.name} {value}")
    assert failed == []
    assert tried > 300
    assert not [record.message for record in caplog.records if record.levelname == "ERROR"]


def test_the_requests_reach_nested_fields_and_maps() -> None:
    """The generator itself: a field that it skipped would never fail."""
    paths = {
        f"{method.name}.{path}"
        for method in methods()
        for path, _ in itertools.chain(fields(method.input_type))
    }
    assert {"ListDevices.page_token", "Enroll.labels.key", "StartRollout.strategy"} <= paths
