"""Model files on the box, named by digest once they are verified.

files/<sha256>    complete and verified
indexes/<sha256>  the chunk index of that file, so that later downloads can copy its chunks
partial/<sha256>  an incomplete file: chunks at their offsets, holes between them
deltas/           the same layout for deltas, until they are applied
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

from agent.errors import CorruptDownloadError
from agent.storage.atomic_file import sync_directory, write_file
from agent.storage.disk import disk_errors, disk_full, free_bytes
from agent.storage.partial_file import Partial, Place
from artifact.chunks import (
    Chunk,
    ChunkIndex,
    decode_index,
    decode_index_of,
    encode_index,
    verify_file,
)
from artifact.errors import ChunkMismatchError
from artifact.manifest import File

# Kept free for the journal, telemetry and the rest of the box.
RESERVED_BYTES: Final = 32 << 20
DELTAS: Final = "deltas"


class FileStore:
    """The files of the releases that this box holds."""

    def __init__(
        self,
        root: Path,
        *,
        budget_bytes: int = 0,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        """Create the folders; ``budget_bytes`` bounds all files together, 0 only by free space."""
        self._root = root
        self._budget_bytes = budget_bytes
        self._free = free
        self._files, self._indexes, self._partial = (
            root / name for name in ("files", "indexes", "partial")
        )
        for directory in (self._files, self._indexes, self._partial):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (root, root.parent):
            sync_directory(directory)

    def path(self, file: File) -> Path:
        """Return the path of a complete and verified file."""
        return self._files / file.sha256

    def has(self, file: File) -> bool:
        """Check that the file is in the store; only verified files get their final name."""
        try:
            return self.path(file).stat().st_size == file.size
        except FileNotFoundError:
            return False

    def drop_unless_sound(self, file: File) -> bool:
        """Verify an installed file again; delete it and return False if it changed."""
        path = self.path(file)
        try:
            verify_file(path, bytes.fromhex(file.sha256), file.size)
        except (FileNotFoundError, ChunkMismatchError):
            path.unlink(missing_ok=True)
            return False
        except OSError:
            # A read error may pass, so the file stays.
            return False
        return True

    def index(self, file: File) -> ChunkIndex | None:
        """Return a file's chunk index if it was fetched before."""
        try:
            return decode_index_of(file, (self._indexes / file.sha256).read_bytes())
        except (OSError, ChunkMismatchError):
            return None

    def save_index(self, index: ChunkIndex) -> None:
        """Store an index that was checked against the manifest."""
        with disk_errors():
            write_file(self._indexes / index.sha256.hex(), encode_index(index))

    def require_space(self, files: list[File]) -> None:
        """Raise DiskFullError, and delete partial files, unless all of ``files`` fit."""
        needed = sum(file.size - self._allocated(file) for file in files)
        free = self._room()
        if needed > free:
            for file in files:
                self.drop_partial(file)
            raise disk_full(f"{needed} bytes are needed, {free} bytes are free for models")

    def has_room(self, needed: int) -> bool:
        """Check that this many more bytes fit."""
        return needed <= self._room()

    def _room(self) -> int:
        room = self._free(self._root) - RESERVED_BYTES
        if self._budget_bytes:
            paths = (path for path in self._root.rglob("*") if path.is_file())
            # Blocks, not sizes: partial files have holes.
            taken = sum(path.stat().st_blocks * 512 for path in paths)
            room = min(room, self._budget_bytes - taken)
        return max(0, room)

    def _allocated(self, file: File) -> int:
        try:
            return min(file.size, (self._partial / file.sha256).stat().st_blocks * 512)
        except FileNotFoundError:
            return 0

    def drop_partial(self, file: File) -> None:
        """Delete the received part of a file."""
        with disk_errors():
            (self._partial / file.sha256).unlink(missing_ok=True)

    @contextlib.contextmanager
    def open_partial(self, index: ChunkIndex) -> Iterator[Partial]:
        """Open an incomplete file with the chunks received before."""
        path = self._partial / index.sha256.hex()
        with disk_errors():
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            with disk_errors():
                os.ftruncate(descriptor, index.size)
            yield Partial(descriptor, index)
        finally:
            os.close(descriptor)

    def finish(self, file: File) -> None:
        """Verify a file that has all its chunks, and rename it durably to its final name."""
        partial = self._partial / file.sha256
        with disk_errors():
            try:
                verify_file(partial, bytes.fromhex(file.sha256), file.size)
            except ChunkMismatchError as error:
                partial.unlink()
                raise CorruptDownloadError(str(error), advice=error.advice) from error
            # Read-only before the rename: a file with its final name never changes again.
            partial.chmod(0o400)
            partial.rename(self.path(file))
            try:
                sync_directory(self._files)
                sync_directory(self._partial)
            except OSError:
                # A later fsync of the same directory would succeed although the entry may be lost.
                self.path(file).unlink(missing_ok=True)
                raise

    @contextlib.contextmanager
    def restoring(self, file: File) -> Iterator[Path]:
        """Yield a path to write a complete file to, then verify and name it like ``finish``."""
        whole = self._partial / f"{file.sha256}.restored"
        with disk_errors():
            whole.unlink(missing_ok=True)
        try:
            yield whole
            with disk_errors():
                whole.replace(self._partial / file.sha256)
        finally:
            with disk_errors():
                whole.unlink(missing_ok=True)
        self.finish(file)

    def deltas(self) -> "FileStore":
        """Return the nested store for deltas, so that a delta is never taken for a model file."""
        return FileStore(self._root / DELTAS, free=self._free)

    def installed(self) -> list[File]:
        """List complete files that have an index, by digests; file names are not stored."""
        found = []
        for path in self._files.iterdir():
            with contextlib.suppress(OSError):
                index = hashlib.sha256((self._indexes / path.name).read_bytes()).hexdigest()
                size = path.stat().st_size
                found.append(File(name="installed", size=size, sha256=path.name, index=index))
        return found

    def places(self, wanted: AbstractSet[bytes]) -> dict[bytes, Place]:
        """Find these chunks in installed files."""
        found: dict[bytes, Place] = {}
        for path in self._files.iterdir():
            for chunk, offset in self._installed_chunks(path):
                if chunk.sha256 in wanted:
                    found.setdefault(chunk.sha256, Place(path, offset))
        return found

    def _installed_chunks(self, path: Path) -> Iterator[tuple[Chunk, int]]:
        try:
            index = decode_index((self._indexes / path.name).read_bytes())
        except (OSError, ChunkMismatchError):
            return
        offset = 0
        for chunk in index.chunks:
            yield chunk, offset
            offset += chunk.size

    def keep_only(self, digests: AbstractSet[str]) -> int:
        """Delete all other files, partial ones and deltas too; return the bytes freed."""
        freed = self.deltas().keep_only(set()) if (self._root / DELTAS).exists() else 0
        with disk_errors():
            for directory in (self._files, self._indexes, self._partial):
                for path in list(directory.iterdir()):
                    if path.name not in digests:
                        freed += path.stat().st_size
                        path.unlink()
        return freed
