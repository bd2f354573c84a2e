"""Messages of this release and of the previous one are read by the other."""

import importlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor

from tests.compatibility import previous_wire

NOW: dict[str, FileDescriptor] = {
    name: importlib.import_module(
        f"flotilla.v1.{name.removeprefix('flotilla/v1/').removesuffix('.proto')}_pb2"
    ).DESCRIPTOR
    for name in previous_wire.FILES
}
FILE_NAMES = sorted(NOW)


def shape(field: FieldDescriptor) -> tuple[Any, ...]:
    """Return all that decides how a field is written and read."""
    inner = field.message_type or field.enum_type
    oneof = field.containing_oneof
    return (
        field.number,
        field.type,
        field.is_repeated,
        inner.full_name if inner else None,
        oneof.name if oneof else None,
    )


@pytest.mark.parametrize("file", FILE_NAMES)
def test_every_message_field_value_and_method_is_still_there(file: str) -> None:
    before, after = previous_wire.FILES[file], NOW[file]
    for name, message in before.message_types_by_name.items():
        now = after.message_types_by_name[name]
        for field in message.fields:
            assert shape(field) == shape(now.fields_by_name[field.name]), f"{name}.{field.name}"
    for name, enum in before.enum_types_by_name.items():
        assert numbers(enum).items() <= numbers(after.enum_types_by_name[name]).items()
    for name, service in before.services_by_name.items():
        for method in service.methods:
            now_method = after.services_by_name[name].methods_by_name[method.name]
            assert (
                method.input_type.full_name,
                method.output_type.full_name,
                method.client_streaming,
                method.server_streaming,
            ) == (
                now_method.input_type.full_name,
                now_method.output_type.full_name,
                now_method.client_streaming,
                now_method.server_streaming,
            )


def numbers(enum: EnumDescriptor) -> dict[str, int]:
    return {value.name: value.number for value in enum.values}


@pytest.mark.parametrize("file", FILE_NAMES)
def test_a_full_message_of_the_previous_release_survives_this_one(file: str) -> None:
    for name in previous_wire.FILES[file].message_types_by_name:
        kind = previous_wire.kind(name)
        message = filled(kind.DESCRIPTOR, kind)
        here = current(file, name).FromString(message.SerializeToString())
        assert kind.FromString(here.SerializeToString()) == message


@pytest.mark.parametrize("file", FILE_NAMES)
def test_a_full_message_of_this_release_is_read_by_the_previous_one(file: str) -> None:
    """Fields that the previous release does not know must not change those that it does."""
    for name in previous_wire.FILES[file].message_types_by_name:
        kind = previous_wire.kind(name)
        message = filled(current(file, name).DESCRIPTOR, current(file, name))
        there = kind.FromString(message.SerializeToString())
        there.DiscardUnknownFields()
        assert there == filled(kind.DESCRIPTOR, kind)


def current(file: str, name: str) -> Any:
    module = file.removeprefix("flotilla/v1/").removesuffix(".proto")
    return getattr(importlib.import_module(f"flotilla.v1.{module}_pb2"), name)


def filled(descriptor: Descriptor, kind: Any, depth: int = 0) -> Any:
    """Return a message with a value in every field; of a oneof, in its first field."""
    message = kind()
    for field in descriptor.fields:
        if field.containing_oneof is not None and field != field.containing_oneof.fields[0]:
            continue
        fill(message, field, depth)
    return message


def fill(message: Any, field: FieldDescriptor, depth: int) -> None:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        keys = inner.fields_by_name
        getattr(message, field.name)[scalar(keys["key"])] = scalar(keys["value"])
    elif inner is not None:
        target = getattr(message, field.name)
        target = target.add() if field.is_repeated else target
        target.SetInParent()
        if depth < 4:
            target.CopyFrom(filled(inner, type(target), depth + 1))
    elif field.is_repeated:
        getattr(message, field.name).append(scalar(field))
    else:
        setattr(message, field.name, scalar(field))


def scalar(field: FieldDescriptor) -> Any:
    values = {
        FieldDescriptor.CPPTYPE_STRING: b"\x00\xff" if field.type == field.TYPE_BYTES else "é",
        FieldDescriptor.CPPTYPE_BOOL: True,
        FieldDescriptor.CPPTYPE_DOUBLE: math.pi,
        FieldDescriptor.CPPTYPE_ENUM: 1,
    }
    return values.get(field.cpp_type, 77)


def test_the_recorded_wire_has_every_service() -> None:
    services: Iterator[str] = (
        name for file in previous_wire.FILES.values() for name in file.services_by_name
    )
    assert {"DeviceService", "EnrollmentService", "FleetService", "RolloutService"} <= set(services)
