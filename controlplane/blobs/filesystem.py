"""Chunks as files: ``ab/cd/<sha256 hex>``, each written, flushed, then renamed into place.

All methods block: callers in an event loop use a thread.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Final

from artifact.chunks import MAX_INDEX_BYTES
from controlplane.disk import disk_full, is_no_space
from controlplane.errors import InvalidInputError, NotFoundError

DIGEST_BYTES: Final = 32
# Payload of one message of a download; only the last message is shorter.
MESSAGE_BYTES: Final = 1 << 20


class ChunkStore:
    """A folder of chunks for one writing process."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"
        # First two bytes of the digests whose folders are known to survive a power cut.
        self._flushed: set[bytes] = set()
        self._incoming.mkdir(parents=True, exist_ok=True)
        for leftover in self._incoming.iterdir():
            leftover.unlink()

    def path(self, digest: bytes) -> Path:
        if len(digest) != DIGEST_BYTES:
            raise InvalidInputError(
                f"the digest has {len(digest)} bytes; a SHA-256 has {DIGEST_BYTES}",
                advice="Name chunks by their 32-byte SHA-256.",
            )
        name = digest.hex()
        return self._root / name[:2] / name[2:4] / name

    def size(self, digest: bytes) -> int | None:
        """Return the chunk's size in bytes, or None if it is not here."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def missing(self, digests: Sequence[bytes]) -> list[bytes]:
        """Return the digests of chunks that are absent or damaged, each once, in order.

        Reads and hashes the chunks: a damaged one counts as missing, so publishing repairs it.
        """
        return [digest for digest in dict.fromkeys(digests) if not self._is_whole(digest)]

    def _is_whole(self, digest: bytes) -> bool:
        try:
            data = self.path(digest).read_bytes()
        except OSError:  # absent, or a disk error
            return False
        return hashlib.sha256(data).digest() == digest

    def put(self, data: bytes) -> tuple[bytes, bool]:
        """Store a chunk; return its digest and whether it is new."""
        if not 0 < len(data) <= MAX_INDEX_BYTES:
            raise InvalidInputError(
                f"a chunk of {len(data)} bytes is not within 1 to {MAX_INDEX_BYTES}",
                advice="Build the model with `flotilla model build`, which cuts it.",
            )
        digest = hashlib.sha256(data).digest()
        path = self.path(digest)
        if self._is_whole(digest):
            # A crash, or another upload that is still running, may have left it unflushed.
            self._flush_entry(digest)
            return digest, False
        incoming = self._incoming / f"{digest.hex()}-{secrets.token_hex(4)}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with incoming.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # Flushed before the rename: a name never refers to a chunk that is not whole.
            incoming.rename(path)
            self._flush_entry(digest)
        except BaseException as error:
            with contextlib.suppress(FileNotFoundError):
                incoming.unlink()
            if is_no_space(error):
                raise disk_full(str(error)) from error
            raise
        return digest, True

    def _flush_entry(self, digest: bytes) -> None:
        """Flush a chunk's folder, and once per process the folders above it.

        A folder that exists may have been made by a put that has not flushed its entry yet, or
        that a crash ended; so its existence does not prove that it survives a power cut.
        """
        folder = self.path(digest).parent
        _flush(folder)
        prefix = digest[:2]
        if prefix not in self._flushed:
            _flush(folder.parent)
            _flush(self._root)
            self._flushed.add(prefix)

    def read(self, digest: bytes) -> bytes:
        """Read a whole chunk; NotFoundError if it is not here."""
        try:
            return self.path(digest).read_bytes()
        except FileNotFoundError:
            raise self._absent(digest) from None

    def remove(self, digest: bytes) -> None:
        """Delete a chunk. Only for stores whose chunks can be made again."""
        self.path(digest).unlink(missing_ok=True)

    def messages(self, digests: Sequence[bytes], offset: int) -> Generator[bytes]:
        """Yield the bytes of the chunks, from ``offset`` of the first, in pieces of MESSAGE_BYTES.

        Small chunks share a piece. Raises NotFoundError before the first piece if any is missing.
        """
        # All of them before the first piece: an error in the middle would look like a lost line.
        for digest in digests:
            if self.size(digest) is None:
                raise self._absent(digest)
        run = bytearray()
        for digest in digests:
            with self.path(digest).open("rb") as file:
                file.seek(offset)
                offset = 0
                while data := file.read(MESSAGE_BYTES - len(run)):
                    if not run and len(data) == MESSAGE_BYTES:
                        yield data
                        continue
                    run += data
                    if len(run) == MESSAGE_BYTES:
                        yield bytes(run)
                        run.clear()
        if run:
            yield bytes(run)

    @staticmethod
    def _absent(digest: bytes) -> NotFoundError:
        return NotFoundError(
            f"there is no chunk {digest.hex()}",
            advice="Publish the release again with `flotilla publish`: it sends what is missing.",
        )


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
