"""A chunk source in memory that can interrupt, alter and withhold bytes as networks do."""

import hashlib
import random
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from agent.errors import ChunkMissingError, SourceUnavailableError
from agent.storage.deltas import BeingMade, Offer
from artifact.chunks import encode_index, index_file, read_chunks
from artifact.manifest import File


class ChunkServer:
    """Implements agent.storage.transfer.ChunkSource."""

    def __init__(self, piece_bytes: int = 300_000) -> None:
        self.chunks: dict[bytes, bytes] = {}
        self.piece_bytes = piece_bytes
        self.requests: list[list[bytes]] = []
        self.sent_bytes = 0
        # Bytes that each of the next requests delivers before the connection breaks.
        self.break_after: list[int] = []
        # Chunks to deliver with a wrong byte, and how many more times.
        self.altered: dict[bytes, int] = {}
        # Requests that end in one of these chunks get further bytes after it without end.
        self.endless: set[bytes] = set()
        # Answers to requests for deltas, in turn; afterwards there is no delta.
        self.offers: list[Offer | BeingMade | None] = []
        self.asked: list[tuple[list[File], File]] = []

    def add(self, path: Path, boundaries: Sequence[int] = ()) -> File:
        """Publish a file."""
        index = index_file(path, boundaries)
        self.chunks |= {chunk.sha256: data for chunk, data in read_chunks(path, index)}
        encoded = encode_index(index)
        digest = hashlib.sha256(encoded)
        self.chunks[digest.digest()] = encoded
        return File(
            name=path.name, size=index.size, sha256=index.sha256.hex(), index=digest.hexdigest()
        )

    def fetch(self, digests: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
        self.requests.append(list(digests))
        return self._stream(digests)

    async def delta(self, bases: Sequence[File], target: File) -> Offer | BeingMade | None:
        self.asked.append((list(bases), target))
        return self.offers.pop(0) if self.offers else None

    async def _stream(self, digests: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
        missing = [digest for digest in digests if digest not in self.chunks]
        if missing:
            raise ChunkMissingError(f"no chunk {missing[0].hex()}")
        left = self.break_after.pop(0) if self.break_after else None
        data = b"".join(self._bytes(digest) for digest in digests)
        for start in range(0, len(data), self.piece_bytes):
            piece = data[start : start + self.piece_bytes]
            if left is not None:
                piece, left = piece[:left], left - len(piece[:left])
            if piece:
                self.sent_bytes += len(piece)
                yield piece
            if left == 0:
                raise SourceUnavailableError("the connection broke")
        while digests[-1] in self.endless:
            self.sent_bytes += self.piece_bytes
            yield bytes(self.piece_bytes)

    def _bytes(self, digest: bytes) -> bytes:
        data = self.chunks[digest]
        if self.altered.get(digest, 0) == 0:
            return data
        self.altered[digest] -= 1
        return bytes([data[0] ^ 1]) + data[1:]


def random_file(path: Path, size: int, seed: int = 1) -> Path:
    """Create a file of random bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(seed).randbytes(size))  # noqa: S311 - bytes to move, no secret
    return path
