"""Fetching files: only what is missing, verified chunk by chunk, resumed after any break."""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar

import msgspec

from agent.backoff import Backoff
from agent.errors import (
    ChunkMissingError,
    CorruptDownloadError,
    DeltaRefusedError,
    DiskFailedError,
    DiskFullError,
    DownloadError,
    SourceUnavailableError,
)
from agent.storage.deltas import BeingMade, Offer, likely_bases, restore
from agent.storage.file_store import FileStore
from agent.storage.partial_file import Partial
from agent.storage.transfer import LIMITS, ChunkSource, Limits, Line, Tally
from artifact.chunks import MAX_INDEX_BYTES, Chunk, ChunkIndex, decode_index_of, verify_chunk
from artifact.errors import ChunkMismatchError
from artifact.manifest import File

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# One request: few enough chunks that a break costs little, enough to keep the line full.
MAX_BATCH_CHUNKS: Final = 1024
MAX_BATCH_BYTES: Final = 64 << 20
MAX_CORRUPT_TRIES: Final = 3
# A delta of less, or of more than this share of what is missing, is not worth a process.
MIN_DELTA_BYTES: Final = 256 << 10
WORTHWHILE: Final = 0.9
# A delta that is being made is waited for as long as the chunks would take at this rate.
PATIENCE_BYTES_PER_SECOND: Final = 2 << 20


@dataclass(frozen=True, slots=True)
class _Progress:
    """What one file adds to its line's tally, which stood at ``start``, whatever it comes as."""

    line: Line
    changed: Callable[[], None]
    start: int
    file_bytes: int

    def reached(self, done: int, of: int) -> None:
        self.line.tally.done_bytes = self.start + (self.file_bytes * done // of if of else 0)
        self.changed()


class Downloader:
    """Brings files into the store."""

    def __init__(
        self,
        store: FileStore,
        source: ChunkSource,
        *,
        limits: Limits = LIMITS,
        clock: Callable[[], float] = time.monotonic,
        backoff: Callable[[], Backoff] = lambda: Backoff(0.5, 15),
    ) -> None:
        self._store = store
        self._source = source
        self._limits = limits
        self._clock = clock
        self._backoff = backoff

    async def fetch(self, files: Sequence[File], tally: Tally, changed: Callable[[], None]) -> None:
        """Have all of ``files`` in the store; raises DownloadError.

        ``tally`` is kept up to date and ``changed`` called as bytes arrive.
        """
        missing = [file for file in _unique(files) if not self._store.has(file)]
        tally.total_bytes = sum(file.size for file in missing)
        tally.done_bytes = 0
        self._store.require_space(missing)
        line = Line(self._source, tally, self._limits, self._clock)
        for file in missing:
            progress = _Progress(line, changed, tally.done_bytes, file.size)
            await self._fetch_whole(file, progress)
            progress.reached(file.size, file.size)

    async def _fetch_whole(self, file: File, progress: _Progress) -> None:
        """Try until a file is here, with a bound on everything that may go wrong."""
        line, backoff = progress.line, self._backoff()
        corrupt_tries = 0
        deltas = True
        while not self._store.has(file):
            received = line.tally.received_bytes
            try:
                await self._fetch_file(file, progress, deltas=deltas)
            except SourceUnavailableError:
                if line.over:
                    raise
                if line.tally.received_bytes > received:
                    backoff.reset()
                await asyncio.sleep(backoff.next_seconds())
            except DeltaRefusedError as error:
                log.warning("delta_refused file=%s error=%s", file.sha256, ascii(str(error)))
                deltas = False
            except ChunkMismatchError as error:
                corrupt_tries += 1
                if corrupt_tries == MAX_CORRUPT_TRIES:
                    self._store.drop_partial(file)
                    raise CorruptDownloadError(
                        f"{file.name}: {error} (tried {corrupt_tries} times)",
                        advice="Check proxies on the way; publishing it again mends the server.",
                    ) from error
            except (DiskFullError, DiskFailedError, ChunkMissingError):
                self._store.drop_partial(file)
                raise

    async def _fetch_file(self, file: File, progress: _Progress, *, deltas: bool) -> None:
        """By chunks or by delta, whichever is fewer bytes."""
        line = progress.line
        index = self._store.index(file) or await self._fetch_index(file, line)
        with self._store.open_partial(index) as partial:
            missing = await _to_the_end(self._reuse, partial)
        missing_bytes = sum(chunk.size for chunk in missing)
        offer = await self._offer(file, missing_bytes) if deltas else None
        if offer is not None:
            await self._by_delta(file, offer, progress)
            return
        with self._store.open_partial(index) as partial:
            done = file.size - missing_bytes
            progress.reached(done, file.size)
            for batch in _batches(missing):
                async with aclosing(_receive(line, batch)) as chunks:
                    async for chunk, data in chunks:
                        await _to_the_end(_store_chunk, partial, chunk, data)
                        done += chunk.size
                        progress.reached(done, file.size)
            await _to_the_end(partial.sync)
        await asyncio.to_thread(self._store.finish, file)

    async def _offer(self, file: File, missing_bytes: int) -> Offer | None:
        """A delta that is fewer bytes than what is missing, if there is one and room for it."""
        if missing_bytes < MIN_DELTA_BYTES:
            return None
        bases = likely_bases(await asyncio.to_thread(self._store.installed), file)
        if not bases:
            return None
        patience = min(self._limits.delta_seconds, missing_bytes / PATIENCE_BYTES_PER_SECOND)
        deadline = self._clock() + patience
        pause = self._backoff()
        while isinstance(found := await self._source.delta(bases, file), BeingMade):
            left = deadline - self._clock()
            if left <= 0:
                return None
            await asyncio.sleep(min(left, max(found.retry_after_seconds, pause.next_seconds())))
        if found is None or found.delta.size >= WORTHWHILE * missing_bytes:
            return None
        # The restored file is written beside what has come of it by chunks.
        room = self._store.has_room(file.size + found.delta.size)
        return found if room and any(found.base == base.sha256 for base in bases) else None

    async def _by_delta(self, file: File, offer: Offer, progress: _Progress) -> None:
        """Fetch a delta as any file, then make ``file`` of it; DeltaRefusedError."""
        delta, store = offer.delta, self._store.deltas()
        base = self._store.path(msgspec.structs.replace(delta, sha256=offer.base))
        try:
            if not store.has(delta):
                fetching = Downloader(store, self._source, limits=self._limits, clock=self._clock)
                await fetching._fetch_file(delta, progress, deltas=False)
            with self._store.restoring(file) as destination:
                await restore(base, store.path(delta), destination, file.size)
        except SourceUnavailableError:
            # What came of it stays, and is used when the server is back.
            raise
        except (DownloadError, ChunkMismatchError) as error:
            store.keep_only(set())
            raise DeltaRefusedError(str(error)) from error
        store.keep_only(set())

    def _reuse(self, partial: Partial) -> list[Chunk]:
        """What is still missing after taking what partial and installed files have."""
        missing = partial.missing()
        places = self._store.places({chunk.sha256 for chunk in missing})
        return [
            chunk
            for chunk in missing
            if chunk.sha256 not in places or not partial.copy(chunk, places[chunk.sha256])
        ]

    async def _fetch_index(self, file: File, line: Line) -> ChunkIndex:
        data = await line.whole(bytes.fromhex(file.index), MAX_INDEX_BYTES)
        index = decode_index_of(file, data)
        self._store.save_index(index)
        return index


async def _receive(line: Line, batch: Sequence[Chunk]) -> AsyncGenerator[tuple[Chunk, bytes], None]:
    """The chunks of a batch, cut out of the stream by their known sizes."""
    waiting = iter(batch)
    chunk = next(waiting, None)
    buffer = bytearray()
    async with aclosing(line.pieces([each.sha256 for each in batch])) as pieces:
        async for piece in pieces:
            buffer += piece
            while chunk is not None and len(buffer) >= chunk.size:
                data = bytes(memoryview(buffer)[: chunk.size])
                del buffer[: chunk.size]
                yield chunk, data
                chunk = next(waiting, None)
            if chunk is None and buffer:
                break
    if chunk is not None or buffer:
        raise ChunkMismatchError(f"a stream of {len(batch)} chunks ended in the wrong place")


async def _to_the_end(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs in a thread; who is cancelled meanwhile waits for it.

    A file must not be closed under a thread that writes to it: its descriptor could be another
    file's by then.
    """
    # No task, which the end of the event loop would cancel, and the thread would go on.
    call = functools.partial(function, *args, **kwargs)
    running = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            # Whoever is in a hurry cancels again.
            with suppress(asyncio.CancelledError):
                await asyncio.wait({running})
        raise


def _store_chunk(partial: Partial, chunk: Chunk, data: bytes) -> None:
    verify_chunk(chunk, data)
    partial.write(chunk, data)


def _unique(files: Sequence[File]) -> list[File]:
    return list({file.sha256: file for file in files}.values())


def _batches(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    batches: list[list[Chunk]] = []
    size = 0
    for chunk in chunks:
        if not batches or len(batches[-1]) == MAX_BATCH_CHUNKS or size >= MAX_BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(chunk)
        size += chunk.size
    return batches
