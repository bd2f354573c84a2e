"""Chunks: the units in which files are named, stored and transferred.

A file is cut into chunks of at most 1 MiB, each named by its SHA-256. The list of them is the
file's *index*: a small binary document which is itself stored and fetched by its digest
(``File.index`` in a manifest), so that a device can request the chunks that it lacks and verify
each on arrival. The index contains sizes, so cutting files elsewhere needs no new format.

    magic "FLIX" | version u8 = 1 | file size u64 | file SHA-256 | count u32 | count * (size u32,
    SHA-256)

All integers are big-endian. An index has exactly one encoding; other bytes are refused.
"""

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Final

from artifact.errors import ChunkMismatchError
from artifact.manifest import File

MAX_CHUNK_BYTES: Final = 1 << 20
MAX_INDEX_BYTES: Final = 3 << 20

_MAGIC: Final = b"FLIX\x01"
_HEADER: Final = struct.Struct(">5sQ32sI")
_ENTRY: Final = struct.Struct(">I32s")
MAX_CHUNKS: Final = (MAX_INDEX_BYTES - _HEADER.size) // _ENTRY.size

_FETCH_AGAIN: Final = "Fetch it again; if it comes back the same, publish the model again."


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of bytes: its SHA-256 (32 bytes) and its size, 1 to MAX_CHUNK_BYTES."""

    sha256: bytes
    size: int


@dataclass(frozen=True, slots=True)
class ChunkIndex:
    """The chunks of a file, in order."""

    sha256: bytes
    size: int
    chunks: tuple[Chunk, ...]


def index_file(path: Path, boundaries: Sequence[int] = ()) -> ChunkIndex:
    """Read a file once and return its index.

    ``boundaries`` are ascending byte offsets at which a chunk must end. With a boundary at every
    tensor, the tensors that two versions of a model share are shared chunks. Longer runs are cut
    every MAX_CHUNK_BYTES. Raises ChunkMismatchError for a file that needs more than MAX_CHUNKS.
    """
    whole = hashlib.sha256()
    chunks: list[Chunk] = []
    with path.open("rb") as source:
        # Of the open file: the path may come to name another one meanwhile.
        size = os.fstat(source.fileno()).st_size
        for length in _cut(size, boundaries):
            data = source.read(length)
            whole.update(data)
            chunks.append(Chunk(hashlib.sha256(data).digest(), len(data)))
            if len(data) != length:
                raise ChunkMismatchError(
                    f"{path} shrank from {size} bytes while it was read",
                    advice="Let nothing write to it, then try again.",
                )
            if len(chunks) > MAX_CHUNKS:
                raise ChunkMismatchError(
                    f"{path} with {size} bytes needs more than {MAX_CHUNKS} chunks",
                    advice="Split the model into several files.",
                )
    return ChunkIndex(whole.digest(), size, tuple(chunks))


def _cut(size: int, boundaries: Sequence[int]) -> Iterator[int]:
    start = 0
    # The end of the file closes the last run, like a boundary.
    for end in (*boundaries, size):
        if not start <= end <= size:
            raise ValueError(f"boundary {end} is not within {start} to {size}")
        while start < end:
            length = min(MAX_CHUNK_BYTES, end - start)
            yield length
            start += length


def read_chunks(path: Path, index: ChunkIndex) -> Iterator[tuple[Chunk, bytes]]:
    """Yield every chunk of a file with its bytes, each verified; for uploading and for reuse."""
    with path.open("rb") as source:
        for chunk in index.chunks:
            data = source.read(chunk.size)
            verify_chunk(chunk, data)
            yield chunk, data


def encode_index(index: ChunkIndex) -> bytes:
    """Encode an index; raise ChunkMismatchError if it breaks a bound."""
    parts = [_HEADER.pack(_MAGIC, index.size, index.sha256, len(index.chunks))]
    parts += [_ENTRY.pack(chunk.size, chunk.sha256) for chunk in index.chunks]
    data = b"".join(parts)
    # Decoding checks every bound, so that an index that others refuse is never published.
    decode_index(data)
    return data


def decode_index(data: bytes) -> ChunkIndex:
    """Decode an index; raise ChunkMismatchError unless the bytes are exactly one encoded index."""
    if not _HEADER.size <= len(data) <= MAX_INDEX_BYTES:
        raise _bad_index(f"it has {len(data)} bytes")
    magic, size, sha256, count = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise _bad_index(f"it starts with {magic!r}, not {_MAGIC!r}")
    # Exact: trailing bytes would give one file several valid indexes, each with its own digest.
    if len(data) != _HEADER.size + count * _ENTRY.size:
        raise _bad_index(f"it has {len(data)} bytes, which do not hold {count} chunks")
    body = memoryview(data)[_HEADER.size :]
    chunks = tuple(Chunk(digest, length) for length, digest in _ENTRY.iter_unpack(body))
    for position, chunk in enumerate(chunks):
        if not 0 < chunk.size <= MAX_CHUNK_BYTES:
            raise _bad_index(f"chunk {position} has {chunk.size} bytes")
    total = sum(chunk.size for chunk in chunks)
    if total != size:
        raise _bad_index(f"its chunks have {total} bytes, the file {size}")
    return ChunkIndex(sha256, size, chunks)


def decode_index_of(file: File, data: bytes) -> ChunkIndex:
    """Decode the index of a manifest's file, checked against the file's digest and size."""
    # The digest first: the manifest is signed, so bytes that match it need no other trust.
    digest = hashlib.sha256(data).hexdigest()
    if digest != file.index:
        raise ChunkMismatchError(
            f"the index of {file.name} has the digest {digest}, the manifest names {file.index}",
            advice=_FETCH_AGAIN,
        )
    index = decode_index(data)
    if (index.sha256.hex(), index.size) != (file.sha256, file.size):
        raise ChunkMismatchError(
            f"the index of {file.name} describes {index.size} bytes with the digest "
            f"{index.sha256.hex()}, the manifest {file.size} with {file.sha256}",
            advice="Build and publish the model again.",
        )
    return index


def _bad_index(reason: str) -> ChunkMismatchError:
    return ChunkMismatchError(f"this is not a chunk index: {reason}", advice=_FETCH_AGAIN)


def verify_chunk(chunk: Chunk, data: bytes | memoryview) -> None:
    """Raise ChunkMismatchError unless ``data`` is exactly this chunk."""
    digest = hashlib.sha256(data).digest()
    if len(data) != chunk.size or digest != chunk.sha256:
        raise ChunkMismatchError(
            f"a chunk came with {len(data)} bytes and the digest {digest.hex()}; expected "
            f"{chunk.size} bytes and {chunk.sha256.hex()}",
            advice=_FETCH_AGAIN,
        )


def verify_file(path: Path, sha256: bytes, size: int) -> None:
    """Raise ChunkMismatchError unless the file has exactly this digest and size."""
    actual_size = path.stat().st_size
    # Cheaper than hashing gigabytes of a file that cannot match.
    if actual_size != size:
        raise ChunkMismatchError(
            f"{path} has {actual_size} bytes; expected {size}", advice=_FETCH_AGAIN
        )
    with path.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").digest()
    if digest != sha256:
        raise ChunkMismatchError(
            f"{path} has the digest {digest.hex()}; expected {sha256.hex()}", advice=_FETCH_AGAIN
        )


def assemble_file(index: ChunkIndex, pieces: Iterable[bytes], destination: Path) -> None:
    """Write a file from its chunks, in order, flushed to disk; a failure leaves no file.

    ``destination`` must not exist. Raises ChunkMismatchError if a piece or the whole is wrong.
    """
    with destination.open("xb") as target:
        try:
            _write_pieces(index, pieces, target)
        # Also when cancelled: a file that exists counts as complete.
        except BaseException:
            destination.unlink()
            raise


def _write_pieces(index: ChunkIndex, pieces: Iterable[bytes], target: BufferedWriter) -> None:
    whole = hashlib.sha256()
    arriving = iter(pieces)
    for chunk in index.chunks:
        # A missing piece counts as empty, and chunks are never empty.
        data = next(arriving, b"")
        verify_chunk(chunk, data)
        whole.update(data)
        target.write(data)
    target.flush()
    # Before the digest is compared: the caller renames the file, and a name must not outlive
    # a power cut that loses its content.
    os.fsync(target.fileno())
    if whole.digest() != index.sha256:
        raise ChunkMismatchError(
            f"{target.name} came out with the digest {whole.hexdigest()}; expected "
            f"{index.sha256.hex()}",
            advice="The index contradicts itself: publish the model again.",
        )
