"""Uploads: chunks of model files, and the check that a release's files are complete."""

import asyncio
from collections.abc import Sequence
from typing import Final

from artifact.chunks import MAX_CHUNK_BYTES, decode_index_of
from artifact.manifest import File, Release
from controlplane.blobs import ChunkStore
from controlplane.errors import ConflictError, InvalidInputError

MAX_QUERIED_DIGESTS: Final = 16384


class UploadService:
    """The chunk store as publishers use it."""

    def __init__(self, chunks: ChunkStore) -> None:
        self._chunks = chunks

    async def missing(self, digests: Sequence[bytes]) -> list[bytes]:
        """Return the digests of the chunks that a publisher still has to upload."""
        if len(digests) > MAX_QUERIED_DIGESTS:
            raise InvalidInputError(
                f"the request names {len(digests)} digests; the maximum is {MAX_QUERIED_DIGESTS}",
                advice="Ask in several calls.",
            )
        return await asyncio.to_thread(self._chunks.missing, digests)

    async def put(self, data: bytes) -> bool:
        """Store a chunk, flushed to disk; return whether it is new."""
        _, new = await asyncio.to_thread(self._chunks.put, data)
        return new

    async def check_files(self, release: Release) -> None:
        """Check that every file of a release is stored whole.

        Raises ConflictError if a chunk is missing, ChunkMismatchError or InvalidInputError if an
        index contradicts the manifest or its chunks.
        """
        await asyncio.to_thread(self._check_files, release)

    def _check_files(self, release: Release) -> None:
        for file in release.files().values():
            self._check_file(file)

    def _check_file(self, file: File) -> None:
        index_digest = bytes.fromhex(file.index)
        if self._chunks.size(index_digest) is None:
            raise _incomplete(file, "its index")
        index = decode_index_of(file, self._chunks.read(index_digest))
        for chunk in index.chunks:
            size = self._chunks.size(chunk.sha256)
            if size is None:
                raise _incomplete(file, f"the chunk {chunk.sha256.hex()}")
            if size != chunk.size or size > MAX_CHUNK_BYTES:
                raise InvalidInputError(
                    f"the index of {file.name} gives the chunk {chunk.sha256.hex()} {chunk.size} "
                    f"bytes; it has {size}",
                    advice="Build the model again with `flotilla model build`.",
                )


def _incomplete(file: File, part: str) -> ConflictError:
    return ConflictError(
        f"{file.name} ({file.sha256}) is not complete here: {part} is missing",
        advice="Publish with `flotilla publish`, which uploads what is missing first.",
    )
