"""An incomplete file: chunks at their offsets, holes between them.

After a restart its chunks are recognised by hashing them in place, so no separate record can
disagree with the data. A download therefore needs a file's size once on the disk, not twice.
"""

import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from agent.storage.disk import disk_errors, disk_full
from artifact.chunks import Chunk, ChunkIndex


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a chunk in an installed file."""

    path: Path
    offset: int


class Partial:
    """An open incomplete file and the offsets of its chunks."""

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
        """List the chunks that are not in place yet, each once, in the file's order."""
        return [
            Chunk(digest, self._sizes[digest])
            for digest, offsets in self._offsets.items()
            if not all(self._is_at(digest, offset) for offset in offsets)
        ]

    def _is_at(self, digest: bytes, offset: int) -> bool:
        size = self._sizes[digest]
        try:
            if os.lseek(self._descriptor, offset, os.SEEK_DATA) >= offset + size:
                return False
        except OSError as error:
            # ENXIO: a hole up to the end. Other errors: the file system has no SEEK_DATA.
            if error.errno == errno.ENXIO:
                return False
        try:
            return hashlib.sha256(os.pread(self._descriptor, size, offset)).digest() == digest
        except OSError:
            # An unreadable chunk is fetched again.
            return False

    def write(self, chunk: Chunk, data: bytes) -> None:
        """Write a verified chunk at each of its offsets."""
        with disk_errors():
            for offset in self._offsets[chunk.sha256]:
                if os.pwrite(self._descriptor, data, offset) != len(data):
                    raise disk_full("a write was incomplete")

    def copy(self, chunk: Chunk, place: Place) -> bool:
        """Copy a chunk from an installed file; False if its bytes differ from the index."""
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
        """Flush the file to the disk; DiskFailedError or DiskFullError.

        After an error the file must not be used: Linux marks the lost pages clean, so that a second
        fsync would succeed without writing them.
        """
        with disk_errors():
            os.fsync(self._descriptor)
