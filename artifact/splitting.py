"""Boundaries of chunks: at tensors, and elsewhere by content.

Every tensor begins a chunk, so two versions of a model share the chunks of the tensors that they
share, wherever those lie in the file. Runs between tensors (headers, vocabularies) and files
without tensors are cut where a rolling hash of the last bytes matches a mask, so that an insertion
changes only the chunks around it. The rolling hash is FastCDC's gear hash with its two masks:
https://www.usenix.org/conference/atc16/technical-sessions/presentation/xia.

The builder of a model and the check before signing must cut alike: these figures are part of the
format of a built model, and changing one means building again.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

# Smaller tensors and smaller gaps get no chunk of their own.
MIN_SPAN_BYTES: Final = 256
# Longer runs without tensors are cut by size alone: hashing is slow in Python, and undescribed
# weights gain little by it.
MAX_HASHED_BYTES: Final = 64 << 20

_MIN_CHUNK: Final = 16 << 10
_AIM: Final = 64 << 10
_MAX_CHUNK: Final = 256 << 10
# Below this length the strict mask makes a cut less likely than 1/_AIM, above it more likely.
_STRICT_MASK: Final = (1 << 32) - (1 << 14)
_LOOSE_MASK: Final = (1 << 32) - (1 << 18)
_WINDOW: Final = 32
_GEAR: Final = tuple(
    int.from_bytes(hashlib.sha256(b"flotilla gear %d" % byte).digest()[:4]) for byte in range(256)
)


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Place of a tensor in a file."""

    offset: int
    size: int


def boundaries(path: Path, tensors: Iterable[Span] = ()) -> list[int]:
    """Return ascending offsets at which a chunk must end, for ``chunks.index_file``.

    Tensors that overlap an earlier one or exceed the file are ignored.
    """
    found: list[int] = []
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        end = 0
        for tensor in sorted(tensors):
            if (
                tensor.size < MIN_SPAN_BYTES
                # A file that lists a tensor twice, or a hostile one, may let tensors overlap.
                or tensor.offset < end
                or tensor.offset + tensor.size > size
            ):
                continue
            found += _between(file, end, tensor.offset)
            end = tensor.offset + tensor.size
        found += _between(file, end, size)
    return found


def _between(file: BinaryIO, start: int, end: int) -> Iterator[int]:
    """Yield the cuts from the end of one tensor to the start of the next."""
    length = end - start
    if length < MIN_SPAN_BYTES:
        # Padding belongs to the tensor before it.
        yield end
        return
    yield start
    if length <= MAX_HASHED_BYTES:
        while end - start > _MIN_CHUNK:
            file.seek(start)
            start += _cut_length(file.read(min(_MAX_CHUNK, end - start)))
            yield start
    yield end


def _cut_length(data: bytes) -> int:
    """Return the length of the first chunk of ``data``; all of it without a match."""
    # The hash covers the last 32 bytes: older ones are shifted out of its 32 bits. So it may start
    # 32 bytes before the first possible cut, with the same result.
    value = 0
    position = _MIN_CHUNK - _WINDOW
    for mask, limit in ((_STRICT_MASK, _AIM), (_LOOSE_MASK, _MAX_CHUNK)):
        for byte in memoryview(data)[position:limit]:
            value = ((value << 1) + _GEAR[byte]) & 0xFFFFFFFF
            position += 1
            if not value & mask and position >= _MIN_CHUNK:
                return position
    return len(data)
