"""Deltas that were made: a cache that may be deleted at any time and costs only its making.

    made/<base>-<target>.json   which delta turns the one file into the other, or that none pays
    chunks/                     the deltas' chunks, apart from those of releases
    work/                       files while one is made

What was not asked for longest goes first when the deltas take more than their budget.
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
    """The SHA-256 of a file that is held and of one that is wanted."""

    base: bytes
    target: bytes

    @property
    def name(self) -> str:
        return f"{self.base.hex()}-{self.target.hex()}.json"


class Delta(Struct, frozen=True, forbid_unknown_fields=True):
    """A delta as a file; ``size`` 0 says that none is worth fetching for this pair."""

    size: Annotated[int, Meta(ge=0)]
    sha256: Digest
    index: Digest


USELESS: Final = Delta(0, "0" * 64, "0" * 64)


class DeltaCache:
    """A folder of deltas. One process writes to it; its methods block."""

    def __init__(self, root: Path, budget_bytes: int) -> None:
        self._made = root / "made"
        self.work = root / "work"
        self._budget_bytes = budget_bytes
        shutil.rmtree(self.work, ignore_errors=True)
        for folder in (self._made, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        self.chunks = ChunkStore(root / "chunks")

    def find(self, pair: Pair) -> Delta | None:
        """What is known of a pair; asking keeps it from being dropped soon."""
        path = self._made / pair.name
        delta = _read(path)
        if (
            delta is not None
            and delta.size
            and self.chunks.size(bytes.fromhex(delta.index)) is None
        ):
            return None
        if delta is not None:
            os.utime(path)
        return delta

    def add(self, pair: Pair, delta_file: Path | None) -> Delta:
        """Keep a delta, or (None) that there is no use in one; drops old ones over the budget."""
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
        """The one just added stays, even when it alone takes more."""
        paths = sorted(self._made.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        known = [(path, _read(path) or USELESS) for path in paths]
        total = 0
        for kept, (path, delta) in enumerate(known):
            total += delta.size
            if kept and total > self._budget_bytes:
                # What both have in common stays with the one that stays.
                needed = {digest for _, other in known[:kept] for digest in self._digests(other)}
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
