"""Bounded reader of protobuf's wire format, enough to walk an ONNX file without loading it.

Source: https://protobuf.dev/programming-guides/encoding/. A message is a range of the file; lengths
and nesting are checked against the enclosing range, and the fields of a whole file are counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap
from typing import Final

from runtimes.errors import UnsafeFileError

MAX_FIELDS: Final = 4_000_000
# Over all names and values, because the reader keeps them in memory.
MAX_TEXT_BYTES: Final = 64 << 20
_MAX_VARINT_BYTES: Final = 10
_MAX_FIELD_NUMBER: Final = (1 << 29) - 1

VARINT: Final = 0
FIXED64: Final = 1
LENGTH: Final = 2
FIXED32: Final = 5
_FIXED_BYTES: Final = {FIXED64: 8, FIXED32: 4}


@dataclass(frozen=True, slots=True)
class Field:
    """A field: its number, its varint value, and the range of its bytes."""

    number: int
    wire: int
    value: int
    start: int
    end: int


class WireReader:
    """Reader of one file's messages; raises UnsafeFileError for anything that is not protobuf."""

    def __init__(self, data: mmap | bytes, name: str) -> None:
        self._data = data
        self._name = name
        self._fields = 0
        self._text_bytes = 0

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Yield the fields of the message in this range."""
        position = start
        while position < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise self.unsafe(f"it has more than {MAX_FIELDS} fields")
            tag, position = self.varint(position, end)
            number, wire = tag >> 3, tag & 7
            if not 1 <= number <= _MAX_FIELD_NUMBER:
                raise self.unsafe(f"it has a field {number} at byte {position}")
            value = 0
            begin = position
            if wire == VARINT:
                value, position = self.varint(position, end)
            elif wire == LENGTH:
                length, begin = self.varint(position, end)
                position = begin + length
            # Groups (wire types 3 and 4) are obsolete and no ONNX writer uses them.
            elif wire in _FIXED_BYTES:
                position += _FIXED_BYTES[wire]
            else:
                raise self.unsafe(f"it has the wire type {wire} at byte {position}")
            if position > end:
                raise self.unsafe(f"the field at byte {begin} extends beyond byte {end}")
            yield Field(number, wire, value, begin, position)

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """Return an unsigned varint and the position after it."""
        value = 0
        for shift in range(_MAX_VARINT_BYTES):
            if position >= end:
                break
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << (7 * shift)
            if byte < 0x80:  # noqa: PLR2004 - the continuation bit
                return value, position
        raise self.unsafe(f"a number at byte {position} is cut off or too long")

    def text(self, field: Field, limit: int) -> str:
        """Return a string field of at most ``limit`` bytes."""
        if field.wire != LENGTH or field.end - field.start > limit:
            raise self.unsafe(f"a name at byte {field.start} is not text of at most {limit} bytes")
        self._text_bytes += field.end - field.start
        if self._text_bytes > MAX_TEXT_BYTES:
            raise self.unsafe(f"its names and values have more than {MAX_TEXT_BYTES:,} bytes")
        try:
            return bytes(self._data[field.start : field.end]).decode()
        except UnicodeDecodeError as error:
            raise self.unsafe(f"a name at byte {field.start} is not UTF-8") from error

    def integers(self, field: Field, limit: int) -> list[int]:
        """Return a repeated int64 field, packed or not, of at most ``limit`` values."""
        if field.wire == VARINT:
            return [_signed(field.value)]
        values = []
        position = field.start
        while position < field.end:
            value, position = self.varint(position, field.end)
            values.append(_signed(value))
            if len(values) > limit:
                raise self.unsafe(f"a list at byte {field.start} has more than {limit} numbers")
        return values

    def unsafe(self, reason: str) -> UnsafeFileError:
        return UnsafeFileError(
            f"{self._name} is not a valid ONNX file: {reason}",
            advice="Fetch or export it again; do not load it with anything else.",
        )


def _signed(value: int) -> int:
    # int64 is written in two's complement over 64 bits.
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
