"""Deltas between files of releases: made on demand, once per pair, within a budget."""

import asyncio
import contextlib
import errno
import logging
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from artifact.chunks import ChunkIndex, assemble_file, decode_index
from artifact.deltas.likeness import MAX_BASES
from artifact.errors import ArtifactError
from controlplane.blobs import ChunkStore, Delta, DeltaCache, Pair
from controlplane.errors import InvalidInputError, NotFoundError

log = logging.getLogger(__name__)

DIGEST_BYTES: Final = 32
# Disk space that making deltas leaves free.
RESERVED_BYTES: Final = 256 << 20
# A delta larger than this share of the file costs the box more time than it saves.
WORTHWHILE: Final = 0.9
RETRY_SECONDS: Final = 1.0
MOST_RETRY_SECONDS: Final = 30.0
# Approximate speed of a comparison, from which the retry hint is computed: a fleet should not
# poll for the whole time.
BYTES_PER_SECOND: Final = 20 << 20
HOUR_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits on making deltas. A device that gets no delta fetches chunks."""

    # The largest file that is compared, and the time limit of one comparison.
    file_bytes: int = 16 << 30
    seconds: float = 900.0
    # Limit for all comparisons of an hour together.
    seconds_per_hour: float = 1800.0
    waiting: int = 16


@dataclass(frozen=True, slots=True)
class FileDigests:
    """SHA-256 of a file's bytes and of its chunk index."""

    sha256: bytes
    index: bytes


@dataclass(frozen=True, slots=True)
class Ready:
    """A delta that starts from this base."""

    base_sha256: bytes
    delta: Delta


@dataclass(frozen=True, slots=True)
class BeingMade:
    """Result while a delta is made: ask again later, or fetch chunks."""

    retry_after_seconds: float = RETRY_SECONDS


class _ComparisonError(Exception):
    """The comparing process failed or timed out."""


class DeltaService:
    """Finds deltas and makes those that devices ask for."""

    def __init__(
        self,
        chunks: ChunkStore,
        cache: DeltaCache,
        budget: Budget = Budget(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chunks = chunks
        self._cache = cache
        self._budget = budget
        self._clock = clock
        self._making: dict[Pair, asyncio.Task[None]] = {}
        # Pairs whose comparison failed; this process does not try them again.
        self._failed: set[Pair] = set()
        # One comparison at a time, so that requests keep their share of the CPU and the disk.
        self._turn = asyncio.Semaphore(1)
        # End and duration of each comparison within the last hour.
        self._spent: deque[tuple[float, float]] = deque()

    def holder(self, digest: bytes) -> ChunkStore:
        """Return the store of a chunk: that of the deltas, or else that of the releases."""
        return self._cache.chunks if self._cache.chunks.size(digest) is not None else self._chunks

    async def get(
        self, bases: Sequence[FileDigests], target: FileDigests
    ) -> Ready | BeingMade | None:
        """Find or start a delta from one of ``bases``, most alike first; None if impossible."""
        _check(bases, target)
        pairs = [(base, Pair(base.sha256, target.sha256)) for base in bases]
        fresh = []
        for base, pair in pairs:
            found = await asyncio.to_thread(self._cache.find, pair)
            if found is None:
                if pair not in self._failed:
                    fresh.append((base, pair))
            elif found.size:
                return Ready(base.sha256, found)
        if any(pair in self._making for _, pair in pairs):
            return BeingMade()
        for base, pair in fresh:
            if (size := await self._start(base, target, pair)) is not None:
                return BeingMade(min(MOST_RETRY_SECONDS, RETRY_SECONDS + size / BYTES_PER_SECOND))
        return None

    async def close(self) -> None:
        """Cancel the comparisons in progress."""
        for task in self._making.values():
            task.cancel()
        await asyncio.gather(*self._making.values(), return_exceptions=True)

    async def _start(self, base: FileDigests, target: FileDigests, pair: Pair) -> int | None:
        """Start a comparison and return the target's size in bytes.

        Returns None if a file is missing or the budget is spent.
        """
        if len(self._making) >= self._budget.waiting or not self._within_hourly_budget():
            return None
        try:
            sources = await asyncio.to_thread(lambda: [self._load(each) for each in (base, target)])
        except (ArtifactError, NotFoundError):
            return None
        # Another request may have started it while the indexes were read.
        if pair not in self._making:
            task = asyncio.create_task(self._make(pair, sources))
            self._making[pair] = task
            task.add_done_callback(lambda _: self._making.pop(pair, None))
        return sources[1].size

    def _within_hourly_budget(self) -> bool:
        now = self._clock()
        while self._spent and self._spent[0][0] < now - HOUR_SECONDS:
            self._spent.popleft()
        return sum(seconds for _, seconds in self._spent) < self._budget.seconds_per_hour

    def _load(self, file: FileDigests) -> ChunkIndex:
        index = decode_index(self._chunks.read(file.index))
        if index.sha256 != file.sha256 or index.size > self._budget.file_bytes:
            raise NotFoundError(
                f"the file {file.sha256.hex()} is missing or larger than the budget allows"
            )
        return index

    async def _make(self, pair: Pair, sources: Sequence[ChunkIndex]) -> None:
        async with self._turn:
            began = self._clock()
            folder = self._cache.work / pair.name.removesuffix(".json")
            try:
                delta = await self._compare(folder, *sources)
                made = await asyncio.to_thread(self._cache.add, pair, delta)
                log.info(
                    "delta_made base=%s target=%s bytes=%d of=%d seconds=%.1f",
                    pair.base.hex()[:12],
                    pair.target.hex()[:12],
                    made.size,
                    sources[1].size,
                    self._clock() - began,
                )
            except _ComparisonError as error:
                self._failed.add(pair)
                log.warning("delta_failed pair=%s error=%s", pair.name, ascii(str(error)))
            except (ArtifactError, NotFoundError, OSError) as error:
                log.warning("delta_not_made pair=%s error=%s", pair.name, ascii(str(error))[:300])
            finally:
                self._spent.append((self._clock(), self._clock() - began))
                shutil.rmtree(folder, ignore_errors=True)

    async def _compare(self, folder: Path, base: ChunkIndex, target: ChunkIndex) -> Path | None:
        """Make the delta's file; None if it saves too little. Raises _ComparisonError, OSError."""
        free = shutil.disk_usage(self._cache.work).free - RESERVED_BYTES
        # The base, the target, and a delta of at most the target's size.
        if base.size + 2 * target.size > free:
            raise OSError(errno.ENOSPC, f"{base.size + 2 * target.size} bytes needed, {free} free")
        await asyncio.to_thread(folder.mkdir)
        paths = [folder / name for name in ("base", "target", "delta")]
        for index, path in zip((base, target), paths, strict=False):
            await asyncio.to_thread(assemble_file, index, self._pieces(index), path)
        process = await asyncio.create_subprocess_exec(
            # A separate process: the arithmetic would hold the interpreter lock for minutes.
            *(sys.executable, "-P", "-m", "runtimes.deltas", *map(str, paths)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(self._budget.seconds):
                _, complaint = await process.communicate()
        except TimeoutError:
            raise _ComparisonError(f"it took more than {self._budget.seconds} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode != 0:
            raise _ComparisonError(complaint[-300:].decode(errors="replace"))
        return paths[2] if paths[2].stat().st_size <= WORTHWHILE * target.size else None

    def _pieces(self, index: ChunkIndex) -> Iterator[bytes]:
        return (self._chunks.read(chunk.sha256) for chunk in index.chunks)


def _check(bases: Sequence[FileDigests], target: FileDigests) -> None:
    if not 1 <= len(bases) <= MAX_BASES:
        raise InvalidInputError(
            f"{len(bases)} bases are not within 1 to {MAX_BASES}",
            advice="Name the most similar ones.",
        )
    for file in (*bases, target):
        if (len(file.sha256), len(file.index)) != (DIGEST_BYTES, DIGEST_BYTES):
            raise InvalidInputError(
                f"the digests have {len(file.sha256)} and {len(file.index)} bytes; SHA-256 has "
                f"{DIGEST_BYTES}",
                advice="Update the agent.",
            )
