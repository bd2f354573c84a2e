"""A file on its way: chunks stand at their offsets, the rest is a hole.

It needs no record of what it has: after a restart its chunks are hashed where they stand. So a file
needs its own size on the disk and not twice that.
"""

import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from agent.storage.disk import disk_full, writing
from artifact.chunks import Chunk, ChunkIndex


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk's bytes stand in an installed file."""

    path: Path
    offset: int


class Partial:
    """An open file that waits for chunks."""

    def __init__(self, descriptor: int, index: ChunkIndex) -> None:
        self._descriptor = descriptor
        self._offsets: dict[bytes, list[int]] = {}
        self._sizes: dict[bytes, int] = {}
        offset = 0
        for chunk in index.chunks:
            self._offsets.setdefault(chunk.sha256, []).append(offset)
            self._sizes[chunk.sha256] = chunk.size
            offset += chunk.size

    def missing(self) -> list[Chunk]:
        """The chunks that are not here yet, each once, in the file's order."""
        return [
            Chunk(digest, self._sizes[digest])
            for digest, offsets in self._offsets.items()
            if not all(self._stands_at(digest, offset) for offset in offsets)
        ]

    def _stands_at(self, digest: bytes, offset: int) -> bool:
        size = self._sizes[digest]
        try:
            if os.lseek(self._descriptor, offset, os.SEEK_DATA) >= offset + size:
                return False
        except OSError as error:
            # No data from here to the end, or a file system that cannot tell.
            if error.errno == errno.ENXIO:
                return False
        try:
            return hashlib.sha256(os.pread(self._descriptor, size, offset)).digest() == digest
        except OSError:
            # What cannot be read is fetched again.
            return False

    def write(self, chunk: Chunk, data: bytes) -> None:
        """Put a verified chunk wherever the file has it."""
        with writing():
            for offset in self._offsets[chunk.sha256]:
                if os.pwrite(self._descriptor, data, offset) != len(data):
                    raise disk_full("a write came out short")

    def copy(self, chunk: Chunk, place: Place) -> bool:
        """Take a chunk from an installed file; False when it is not what its index said."""
        try:
            with place.path.open("rb") as source:
                source.seek(place.offset)
                data = source.read(chunk.size)
        except OSError:
            return False
        if hashlib.sha256(data).digest() != chunk.sha256:
            return False
        self.write(chunk, data)
        return True

    def sync(self) -> None:
        """Make what was written survive a power cut.

        DiskFailedError or DiskFullError: none of it may be used, as a second fsync would succeed
        without writing what the first one lost.
        """
        with writing():
            os.fsync(self._descriptor)
