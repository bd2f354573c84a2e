"""Bounds of every unary request and upload, checked once before a servicer sees the message.

The rules follow the stricter of the two databases: PostgreSQL stores no NUL in a text, and both
have signed 64-bit integers. NaN and infinities have no place in any request. Fields keep their own,
tighter bounds where they are used.
"""

import math
from collections.abc import Iterable
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from controlplane.errors import InvalidInputError

MAX_STRING_CHARACTERS: Final = 1 << 20
# Elements of all repeated fields and maps of a message together; a chunk index has 65,536.
MAX_ELEMENTS: Final = 1 << 18
MAX_DEPTH: Final = 32
MAX_INTEGER: Final = (1 << 63) - 1


def check_request(message: Message) -> None:
    """Raise InvalidInputError, which names the field, for a value that the server cannot store."""
    waiting: list[tuple[Message, str, int]] = [(message, "", 0)]
    elements = 0
    while waiting:
        current, path, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise _refusal(path, f"nests deeper than {MAX_DEPTH} levels")
        for field, value in current.ListFields():
            place = f"{path}.{field.name}" if path else field.name
            values = list(_values(field, value))
            elements += len(values)
            if elements > MAX_ELEMENTS:
                raise _refusal(place, f"is one of more than {MAX_ELEMENTS} elements")
            for each in values:
                if isinstance(each, Message):
                    waiting.append((each, place, depth + 1))
                else:
                    _check_scalar(each, place)


def _values(field: FieldDescriptor, value: Any) -> Iterable[Any]:
    if field.type == FieldDescriptor.TYPE_BYTES:
        # The content of bytes is checked by its own decoder.
        return ()
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        return (*value.keys(), *value.values())
    return value if field.is_repeated else (value,)


def _check_scalar(value: Any, place: str) -> None:
    if isinstance(value, str):
        if "\x00" in value:
            raise _refusal(place, "contains a NUL character")
        if len(value) > MAX_STRING_CHARACTERS:
            raise _refusal(
                place, f"has {len(value)} characters; the maximum is {MAX_STRING_CHARACTERS}"
            )
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise _refusal(place, f"is {value}, which is not a number")
    elif isinstance(value, int) and value > MAX_INTEGER:
        raise _refusal(place, f"is {value}; the maximum is {MAX_INTEGER}")


def _refusal(place: str, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"the field {place or 'of the request'} {what}", advice="Correct the request."
    )
