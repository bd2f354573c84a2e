"""Cache of deltas; it may be deleted at any time, because deltas can be made again.

    made/<base>-<target>.json   the delta from one file to the other, or that none is worthwhile
    chunks/                     the deltas' chunks, apart from those of releases
    work/                       files of a comparison in progress

Above the budget, the deltas that were requested longest ago are deleted first.
"""

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from artifact.chunks import decode_index, encode_index, index_file, read_chunks
from artifact.errors import ChunkMismatchError
from artifact.manifest import Digest
from controlplane.blobs.filesystem import ChunkStore
from controlplane.errors import NotFoundError

log = logging.getLogger(__name__)

MAX_ENTRY_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Pair:
    """SHA-256 of the base file, which the device has, and of the target file."""

    base: bytes
    target: bytes

    @property
    def name(self) -> str:
        return f"{self.base.hex()}-{self.target.hex()}.json"


class Delta(Struct, frozen=True, forbid_unknown_fields=True):
    """A delta file; ``size`` 0 means that no delta of this pair is worthwhile."""

    size: Annotated[int, Meta(ge=0)]
    sha256: Digest
    index: Digest


USELESS: Final = Delta(0, "0" * 64, "0" * 64)


class DeltaCache:
    """A folder of deltas for one writing process. Its methods block."""

    def __init__(self, root: Path, budget_bytes: int) -> None:
        self._made = root / "made"
        self.work = root / "work"
        self._budget_bytes = budget_bytes
        # Remove the files of a killed comparison.
        shutil.rmtree(self.work, ignore_errors=True)
        for folder in (self._made, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        self.chunks = ChunkStore(root / "chunks")

    def find(self, pair: Pair) -> Delta | None:
        """Return the cached result of a pair, and mark it as recently used."""
        path = self._made / pair.name
        delta = _read(path)
        if (
            delta is not None
            and delta.size
            and self.chunks.size(bytes.fromhex(delta.index)) is None
        ):
            return None
        if delta is not None:
            # The modification time is the time of last use, by which _drop_over_budget sorts.
            os.utime(path)
        return delta

    def add(self, pair: Pair, delta_file: Path | None) -> Delta:
        """Store a delta, or (None) that none is worthwhile; delete old ones above the budget."""
        delta = USELESS
        if delta_file is not None:
            index = index_file(delta_file)
            for _, data in read_chunks(delta_file, index):
                self.chunks.put(data)
            digest, _ = self.chunks.put(encode_index(index))
            delta = Delta(index.size, index.sha256.hex(), digest.hex())
        temporary = self.work / pair.name
        temporary.write_bytes(msgspec.json.encode(delta))
        temporary.replace(self._made / pair.name)
        self._drop_over_budget()
        return delta

    def _drop_over_budget(self) -> None:
        """Delete the least recently used deltas; the newest stays even if it alone is too large."""
        paths = sorted(self._made.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        known = [(path, _read(path) or USELESS) for path in paths]
        total = 0
        for rank, (path, delta) in enumerate(known):
            total += delta.size
            if rank and total > self._budget_bytes:
                # Chunks that a remaining delta also uses stay.
                needed = {digest for _, other in known[:rank] for digest in self._digests(other)}
                path.unlink()
                for digest in self._digests(delta) - needed:
                    self.chunks.remove(digest)
                total -= delta.size
                log.info("delta_dropped pair=%s bytes=%d", path.stem, delta.size)

    def _digests(self, delta: Delta) -> set[bytes]:
        if not delta.size:
            return set()
        digest = bytes.fromhex(delta.index)
        try:
            index = decode_index(self.chunks.read(digest))
        except (NotFoundError, ChunkMismatchError):
            return set()
        return {digest, *(chunk.sha256 for chunk in index.chunks)}


def _read(path: Path) -> Delta | None:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_ENTRY_BYTES), type=Delta)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
