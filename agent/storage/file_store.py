"""Model files on the box: kept by digest, verified before they get their name.

files/<sha256>    whole and verified
indexes/<sha256>  the chunk index of that file, so that its chunks can be used again
partial/<sha256>  a file on its way: chunks stand at their offsets, the rest is a hole
deltas/           the same again, for deltas until they are used
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
from agent.storage.disk import disk_full, free_bytes, writing
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

# Left free for the journal, telemetry and the rest of the box.
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
        """``budget_bytes``: what all files may take together; 0: what is free but the reserve."""
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
        """Where a file stands once it is whole and verified."""
        return self._files / file.sha256

    def has(self, file: File) -> bool:
        """Whether the file is here; only verified files ever get this name."""
        try:
            return self.path(file).stat().st_size == file.size
        except FileNotFoundError:
            return False

    def drop_unless_sound(self, file: File) -> bool:
        """Whether a file is here and still what was verified; one that is not is deleted."""
        path = self.path(file)
        try:
            verify_file(path, bytes.fromhex(file.sha256), file.size)
        except (FileNotFoundError, ChunkMismatchError):
            path.unlink(missing_ok=True)
            return False
        except OSError:
            # What cannot be read now may be read later.
            return False
        return True

    def index(self, file: File) -> ChunkIndex | None:
        """The index of a file if it was fetched before."""
        try:
            return decode_index_of(file, (self._indexes / file.sha256).read_bytes())
        except (OSError, ChunkMismatchError):
            return None

    def save_index(self, index: ChunkIndex) -> None:
        """Keep an index that was checked against the manifest."""
        with writing():
            write_file(self._indexes / index.sha256.hex(), encode_index(index))

    def require_space(self, files: list[File]) -> None:
        """Raises DiskFullError, and drops what was begun, unless all of ``files`` fit."""
        needed = sum(file.size - self._allocated(file) for file in files)
        free = self._room()
        if needed > free:
            for file in files:
                self.drop_partial(file)
            raise disk_full(f"{needed} bytes are needed, {free} are free for models")

    def has_room(self, needed: int) -> bool:
        """Whether so many bytes more would fit."""
        return needed <= self._room()

    def _room(self) -> int:
        room = self._free(self._root) - RESERVED_BYTES
        if self._budget_bytes:
            paths = (path for path in self._root.rglob("*") if path.is_file())
            taken = sum(path.stat().st_blocks * 512 for path in paths)
            room = min(room, self._budget_bytes - taken)
        return max(0, room)

    def _allocated(self, file: File) -> int:
        try:
            return min(file.size, (self._partial / file.sha256).stat().st_blocks * 512)
        except FileNotFoundError:
            return 0

    def drop_partial(self, file: File) -> None:
        """Forget what has come of a file."""
        with writing():
            (self._partial / file.sha256).unlink(missing_ok=True)

    @contextlib.contextmanager
    def open_partial(self, index: ChunkIndex) -> Iterator[Partial]:
        """A file on its way, with what had come of it before."""
        path = self._partial / index.sha256.hex()
        with writing():
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            with writing():
                os.ftruncate(descriptor, index.size)
            yield Partial(descriptor, index)
        finally:
            os.close(descriptor)

    def finish(self, file: File) -> None:
        """Verify a file that has all its chunks, and give it its name, durably."""
        partial = self._partial / file.sha256
        with writing():
            try:
                verify_file(partial, bytes.fromhex(file.sha256), file.size)
            except ChunkMismatchError as error:
                partial.unlink()
                raise CorruptDownloadError(str(error), advice=error.advice) from error
            partial.chmod(0o400)
            partial.rename(self.path(file))
            try:
                sync_directory(self._files)
                sync_directory(self._partial)
            except OSError:
                # A second fsync would succeed and prove nothing.
                self.path(file).unlink(missing_ok=True)
                raise

    @contextlib.contextmanager
    def restoring(self, file: File) -> Iterator[Path]:
        """A path where a file may be written whole; it is verified and named as ``finish`` does."""
        whole = self._partial / f"{file.sha256}.restored"
        with writing():
            whole.unlink(missing_ok=True)
        try:
            yield whole
            with writing():
                whole.replace(self._partial / file.sha256)
        finally:
            with writing():
                whole.unlink(missing_ok=True)
        self.finish(file)

    def deltas(self) -> "FileStore":
        """A store within this one: what a server calls a delta must never be a model's file."""
        return FileStore(self._root / DELTAS, free=self._free)

    def installed(self) -> list[File]:
        """Every whole file whose index is here too, by its digests; names are not kept."""
        found = []
        for path in self._files.iterdir():
            with contextlib.suppress(OSError):
                index = hashlib.sha256((self._indexes / path.name).read_bytes()).hexdigest()
                size = path.stat().st_size
                found.append(File(name="installed", size=size, sha256=path.name, index=index))
        return found

    def places(self, wanted: AbstractSet[bytes]) -> dict[bytes, Place]:
        """Which of these chunks stand in installed files, and where."""
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
        """Delete every file but these, begun ones and deltas too; gives the bytes freed."""
        freed = self.deltas().keep_only(set()) if (self._root / DELTAS).exists() else 0
        with writing():
            for directory in (self._files, self._indexes, self._partial):
                for path in list(directory.iterdir()):
                    if path.name not in digests:
                        freed += path.stat().st_size
                        path.unlink()
        return freed
