"""Requests made from protobuf descriptors, each with one hostile value in one field."""

import base64
import math
from collections.abc import Iterator
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor

STRINGS = ("a\0b", "\0", "x" * 70_000, "\u202e", "'; DROP TABLE devices; --", "[" * 60_000)
TOKENS = tuple(
    base64.urlsafe_b64encode(key.encode()).decode()
    for key in ("a\0b", "9" * 40, "-1", "\u0661\u0662", "x" * 300)
)
# Nested documents (metadata, manifests), which have their own decoders.
DOCUMENTS = (
    b"\0",
    b"\xff" * 100,
    b"[" * 50_000,
    b'{"signed":' * 50_000,
    b'{"signed": {"a": "\\u0000"}, "signatures": []}',
    b'{"signed": {"a": "\\ud800"}, "signatures": []}',
    b'{"signed": ' + b"9" * 5000 + b', "signatures": []}',
    b'{"signed": {"version": 1e999}, "signatures": []}',
)


def hostile(field: FieldDescriptor) -> tuple[Any, ...]:
    kinds = FieldDescriptor
    if field.name == "page_token":
        return (*STRINGS, *TOKENS, "!", "=")
    return {
        kinds.CPPTYPE_STRING: DOCUMENTS if field.type == kinds.TYPE_BYTES else STRINGS,
        kinds.CPPTYPE_UINT64: ((1 << 64) - 1, 1 << 63),
        kinds.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
        kinds.CPPTYPE_UINT32: ((1 << 32) - 1,),
        kinds.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
        kinds.CPPTYPE_DOUBLE: (math.nan, math.inf, -math.inf, -1.0, 1e308),
        kinds.CPPTYPE_FLOAT: (math.nan, math.inf),
        kinds.CPPTYPE_ENUM: (99,),
        kinds.CPPTYPE_BOOL: (True,),
    }[field.cpp_type]


def requests(kind: Descriptor) -> Iterator[tuple[str, Any]]:
    """Yield a request per field and hostile value, with the field's path; others have defaults."""
    make = message_factory.GetMessageClass(kind)
    yield "", make()
    for path, fill in fields(kind):
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
                    key = field.message_type.fields_by_name["key"]
                    inner["k" if key.type == key.TYPE_STRING else 1] = value
                return
            message = inner.add() if field.is_repeated else inner
            if hasattr(message, "SetInParent"):
                message.SetInParent()
        if last.is_repeated:
            getattr(message, last.name).append(value)
        else:
            setattr(message, last.name, value)


def fields(
    message: Descriptor, above: tuple[FieldDescriptor, ...] = ()
) -> Iterator[tuple[str, Fill]]:
    for field in message.fields:
        steps = (*above, field)
        if field.message_type is None:
            yield ".".join(one.name for one in steps), Fill(steps)
        elif len(above) < 4:
            yield from fields(field.message_type, steps)
