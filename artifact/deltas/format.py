"""The container of a delta; every size in it is bounded.

    magic "FLTD" | version u8 = 1 | base SHA-256, size u64 | target SHA-256, size u64 | count u32 |
    count * (mode u8, layout u8, length u64, base offset u64, payload size u32, payload)

Segments describe the target from start to end. COPY takes ``length`` bytes of the base, PLAIN
contains the bytes, PATCH contains them compressed against the base's bytes around its offset, and
BLOCKS contains the differences from as many bytes of the base, field by field
(``artifact.deltas.blocks``).

A payload is a sequence of streams, each ``size u32`` (highest bit set: stored, otherwise one zstd
frame) and its bytes. The reader knows the unpacked size of a stream in advance and refuses a frame
that announces another. All integers are big-endian.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO, Final

import zstandard

from artifact.errors import InvalidDeltaError
from artifact.manifest import MAX_FILE_BYTES

# Most bytes that a segment with a payload may restore. Its tables are all in memory at once: with
# this bound a device restores in at most 54 MiB, interpreter and libraries included.
MAX_SEGMENT_BYTES: Final = 512 << 10
# Limit of a payload beside its plain size: coding may cost a little where nothing is saved; above
# this, plain would have been smaller.
MAX_PAYLOAD_BYTES: Final = MAX_SEGMENT_BYTES + (1 << 12)
MAX_SEGMENTS: Final = 1 << 21
# Bytes of the base that PATCH sees, beginning at the segment's base offset.
PATCH_BYTES: Final = 2 << 20

_MAGIC: Final = b"FLTD\x01"
_HEADER: Final = struct.Struct(">5s32sQ32sQI")
_SEGMENT: Final = struct.Struct(">BBQQI")
_STREAM: Final = struct.Struct(">I")
_STORED: Final = 1 << 31


class Mode(IntEnum):
    COPY = 0
    PLAIN = 1
    PATCH = 2
    BLOCKS = 3


@dataclass(frozen=True, slots=True)
class Header:
    """Digests and sizes of base and target."""

    base_sha256: bytes
    base_size: int
    target_sha256: bytes
    target_size: int
    segments: int = 0

    def encode(self) -> bytes:
        return _HEADER.pack(
            _MAGIC,
            self.base_sha256,
            self.base_size,
            self.target_sha256,
            self.target_size,
            self.segments,
        )


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of the target. ``layout`` is a number of ``blocks.LAYOUTS``, 0 outside BLOCKS."""

    mode: Mode
    length: int
    base_offset: int = 0
    layout: int = 0
    payload: bytes = b""

    def encode(self) -> bytes:
        fields = (self.mode, self.layout, self.length, self.base_offset, len(self.payload))
        return _SEGMENT.pack(*fields) + self.payload


def read_header(delta: BinaryIO) -> Header:
    """Read the header at the start of a delta; raise InvalidDeltaError if it is malformed."""
    magic, *fields = _HEADER.unpack(_read(delta, _HEADER.size))
    if magic != _MAGIC:
        raise bad_delta(f"it starts with {magic!r}, not {_MAGIC!r}")
    header = Header(*fields)
    if max(header.base_size, header.target_size) > MAX_FILE_BYTES:
        raise bad_delta(f"it names files of {header.base_size} and {header.target_size} bytes")
    if header.segments > MAX_SEGMENTS:
        raise bad_delta(f"it has {header.segments} segments, more than {MAX_SEGMENTS}")
    return header


def read_segments(delta: BinaryIO, header: Header) -> Iterator[Segment]:
    """Yield the segments after the header, one in memory at a time; raises InvalidDeltaError."""
    left = header.target_size
    for _ in range(header.segments):
        mode, layout, length, base_offset, payload_size = _SEGMENT.unpack(
            _read(delta, _SEGMENT.size)
        )
        # Everything below is checked before a byte of the payload is read or memory is allocated.
        if mode not in set(Mode):
            raise bad_delta(f"it has a segment of the unknown mode {mode}")
        if not 0 < length <= left:
            raise bad_delta(f"a segment gives {length} bytes where {left} are left")
        if mode != Mode.COPY and (length > MAX_SEGMENT_BYTES or payload_size > MAX_PAYLOAD_BYTES):
            raise bad_delta(f"a segment packs {length} bytes into {payload_size}")
        if (mode != Mode.BLOCKS and layout) or (mode == Mode.COPY and payload_size):
            raise bad_delta(f"a segment of mode {mode} has a layout or a payload")
        used = length if mode in {Mode.COPY, Mode.BLOCKS} else 0
        if base_offset + used > header.base_size:
            raise bad_delta(
                f"a segment uses bytes {base_offset} to {base_offset + used} of a base with "
                f"{header.base_size}"
            )
        left -= length
        yield Segment(Mode(mode), length, base_offset, layout, _read(delta, payload_size))
    if left:
        raise bad_delta(f"its segments leave {left} bytes out")
    # One encoding only, as for an index.
    if delta.read(1):
        raise bad_delta("bytes follow its last segment")


def _read(delta: BinaryIO, size: int) -> bytes:
    data = delta.read(size)
    if len(data) != size:
        raise bad_delta("it is cut off")
    return data


def bad_delta(reason: str) -> InvalidDeltaError:
    return InvalidDeltaError(
        f"this is not a sound delta: {reason}", advice="The file is fetched whole instead."
    )


class StreamWriter:
    """Collects a payload."""

    def __init__(self, level: int) -> None:
        self._packer = zstandard.ZstdCompressor(level=level, write_content_size=True)
        self._parts: list[bytes] = []

    def add(self, data: bytes) -> None:
        """Add a stream, compressed if that is smaller; nothing is written for empty data."""
        if not data:
            return
        packed = self._packer.compress(data)
        if len(packed) < len(data):
            self._parts += (_STREAM.pack(len(packed)), packed)
        else:
            self._parts += (_STREAM.pack(_STORED | len(data)), data)

    def payload(self) -> bytes:
        return b"".join(self._parts)


class StreamReader:
    """Splits a payload; the caller knows the length of each stream."""

    def __init__(self, payload: bytes) -> None:
        self._left = memoryview(payload)

    def take(self, size: int) -> bytes:
        """Return the next stream, which must unpack to ``size`` bytes; raises InvalidDeltaError."""
        if size == 0:
            return b""
        (marked,) = _STREAM.unpack(self._next(_STREAM.size))
        data = self._next(marked & ~_STORED)
        if not marked & _STORED:
            return unpack(data, size)
        if len(data) != size:
            raise bad_delta(f"a stream stores {len(data)} bytes, not {size}")
        return bytes(data)

    def finish(self) -> None:
        """Raise InvalidDeltaError if streams are left over."""
        if self._left:
            raise bad_delta(f"{len(self._left)} bytes of a payload are left over")

    def _next(self, size: int) -> memoryview:
        if size > len(self._left):
            raise bad_delta("a stream reaches beyond its payload")
        data, self._left = self._left[:size], self._left[size:]
        return data


def unpack(
    data: bytes | memoryview,
    size: int,
    dictionary: zstandard.ZstdCompressionDict | None = None,
) -> bytes:
    """Unpack one zstd frame of exactly ``size`` bytes; refuse others before allocating."""
    try:
        # The library allocates the announced size regardless of its limit argument, so check first.
        if zstandard.get_frame_parameters(data).content_size != size:
            raise bad_delta(f"a stream does not announce {size} bytes")
        unpacker = zstandard.ZstdDecompressor(dict_data=dictionary)
        return unpacker.decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise bad_delta(f"a stream does not unpack: {error}") from error
