"""Bytes that a change of release costs a device, by chunks and by delta."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from artifact.chunks import ChunkIndex, decode_index
from artifact.deltas.likeness import like_files
from artifact.manifest import File, Release, decode_release
from controlplane.blobs import ChunkStore
from controlplane.services.publishing.deltas import BeingMade, DeltaService, FileDigests, Ready
from controlplane.services.publishing.releases import ReleaseService


@dataclass(frozen=True, slots=True)
class VariantDifference:
    """Bytes that a device with one release's variant fetches for another's."""

    slot: str
    variant: str
    size_bytes: int
    chunk_bytes: int
    # For each file the smaller of the two ways.
    delta_bytes: int
    being_made: bool


class ComparisonService:
    """Compares published releases."""

    def __init__(self, releases: ReleaseService, chunks: ChunkStore, deltas: DeltaService) -> None:
        self._releases = releases
        self._chunks = chunks
        self._deltas = deltas

    async def compare(self, held: str, wanted: str, variant: str = "") -> list[VariantDifference]:
        """Compare each variant of ``wanted`` with the same variant of ``held``.

        Raises NotFoundError if either release was not published.
        """
        before, after = [
            decode_release((await self._releases.get(reference)).manifest)
            for reference in (held, wanted)
        ]
        known = _variants(before)
        return [
            await self._difference(slot, name, known.get((slot, name), ()), files)
            for (slot, name), files in _variants(after).items()
            if variant in {"", name}
        ]

    async def _difference(
        self, slot: str, variant: str, held: Sequence[File], wanted: Sequence[File]
    ) -> VariantDifference:
        chunk_bytes = delta_bytes = 0
        being_made = False
        # A file that both releases have costs no bytes, not even its index.
        digests = {file.sha256 for file in held}
        others = [file for file in wanted if file.sha256 not in digests]
        known = set()
        if others:
            known = {chunk for file in held for chunk in (await self._index(file)).chunks}
        for file in others:
            index_bytes = self._chunks.size(bytes.fromhex(file.index)) or 0
            missing = set((await self._index(file)).chunks) - known
            by_chunks = index_bytes + sum(chunk.size for chunk in missing)
            found = await self._delta(held, file)
            being_made |= isinstance(found, BeingMade)
            by_delta = by_chunks
            if isinstance(found, Ready):
                delta_index = bytes.fromhex(found.delta.index)
                delta_index_bytes = self._deltas.holder(delta_index).size(delta_index) or 0
                # A box fetches the file's own index before it asks for a delta: both count.
                by_delta = index_bytes + delta_index_bytes + found.delta.size
            chunk_bytes += by_chunks
            delta_bytes += min(by_chunks, by_delta)
        size = sum(file.size for file in wanted)
        return VariantDifference(slot, variant, size, chunk_bytes, delta_bytes, being_made)

    async def _delta(self, held: Sequence[File], file: File) -> Ready | BeingMade | None:
        bases = like_files(held, file)
        if not bases:
            return None
        return await self._deltas.get([_digests(base) for base in bases], _digests(file))

    async def _index(self, file: File) -> ChunkIndex:
        data = await asyncio.to_thread(self._chunks.read, bytes.fromhex(file.index))
        return decode_index(data)


def _variants(release: Release) -> dict[tuple[str, str], tuple[File, ...]]:
    return {
        (component.slot, variant.name): variant.files
        for component in release.components
        for variant in component.model.variants
    }


def _digests(file: File) -> FileDigests:
    return FileDigests(bytes.fromhex(file.sha256), bytes.fromhex(file.index))
