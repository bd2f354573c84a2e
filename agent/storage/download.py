"""Download of files: only missing chunks, each verified, resumed after any interruption."""

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
from agent.storage.transfer import (
    DEFAULT_LIMITS,
    ChunkSource,
    Transfer,
    TransferLimits,
    TransferProgress,
)
from artifact.chunks import MAX_INDEX_BYTES, Chunk, ChunkIndex, decode_index_of, verify_chunk
from artifact.errors import ChunkMismatchError
from artifact.manifest import File

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# Bounds of one request: small, so that an interruption costs little; large, so that the round trip
# between requests does not limit the rate.
MAX_BATCH_CHUNKS: Final = 1024
MAX_BATCH_BYTES: Final = 64 << 20
MAX_CORRUPT_TRIES: Final = 3
# A delta saves too little to start a process for it if fewer bytes than this are missing, or if its
# size is more than this share of them.
MIN_DELTA_BYTES: Final = 256 << 10
MAX_DELTA_SHARE: Final = 0.9
# The wait for a delta is bounded by the time that the missing chunks take at this rate.
CHUNK_BYTES_PER_SECOND: Final = 2 << 20


@dataclass(frozen=True, slots=True)
class _FileProgress:
    """One file's part of a transfer's ``done_bytes``, which were ``start`` before it."""

    transfer: Transfer
    changed: Callable[[], None]
    start: int
    file_bytes: int

    def report(self, done: int, of: int) -> None:
        """Count the share ``done / of`` of the file: a delta is smaller than its file."""
        share = self.file_bytes * done // of if of else 0
        self.transfer.progress.done_bytes = self.start + share
        self.changed()


class Downloader:
    """Download of files into a store, by chunks or by deltas."""

    def __init__(
        self,
        store: FileStore,
        source: ChunkSource,
        *,
        limits: TransferLimits = DEFAULT_LIMITS,
        clock: Callable[[], float] = time.monotonic,
        backoff: Callable[[], Backoff] = lambda: Backoff(0.5, 15),
    ) -> None:
        self._store = store
        self._source = source
        self._limits = limits
        self._clock = clock
        self._backoff = backoff

    async def fetch(
        self, files: Sequence[File], progress: TransferProgress, changed: Callable[[], None]
    ) -> None:
        """Download those of ``files`` that the store does not have; DownloadError.

        Updates ``progress`` and calls ``changed`` as bytes arrive.
        """
        missing = [file for file in _unique(files) if not self._store.has(file)]
        progress.total_bytes = sum(file.size for file in missing)
        progress.done_bytes = 0
        # All files at once: half of a release is of no use.
        self._store.require_space(missing)
        transfer = Transfer(self._source, progress, self._limits, self._clock)
        for file in missing:
            of_file = _FileProgress(transfer, changed, progress.done_bytes, file.size)
            await self._fetch_whole(file, of_file)
            of_file.report(file.size, file.size)

    async def _fetch_whole(self, file: File, progress: _FileProgress) -> None:
        """Retry until the file is in the store; every kind of failure has its bound.

        An unreachable source is retried until the transfer stalls, a corrupt chunk
        MAX_CORRUPT_TRIES times, a refused delta once more by chunks, a full disk not at all.
        """
        transfer, backoff = progress.transfer, self._backoff()
        corrupt_tries = 0
        deltas = True
        while not self._store.has(file):
            received = transfer.progress.received_bytes
            try:
                await self._fetch_file(file, progress, deltas=deltas)
            except SourceUnavailableError:
                if transfer.is_stalled:
                    raise
                # Progress was made, so the next interruption starts with a short wait again.
                if transfer.progress.received_bytes > received:
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
                        advice="Check proxies between the box and the server; if the server's "
                        "copy is damaged, publish the release again.",
                    ) from error
            except (DiskFullError, DiskFailedError, ChunkMissingError):
                self._store.drop_partial(file)
                raise

    async def _fetch_file(self, file: File, progress: _FileProgress, *, deltas: bool) -> None:
        """Fetch by chunks or by delta, whichever is fewer bytes."""
        transfer = progress.transfer
        index = self._store.index(file) or await self._fetch_index(file, transfer)
        with self._store.open_partial(index) as partial:
            missing = await _run_to_completion(self._reuse, partial)
        missing_bytes = sum(chunk.size for chunk in missing)
        offer = await self._offer(file, missing_bytes) if deltas else None
        if offer is not None:
            await self._fetch_by_delta(file, offer, progress)
            return
        with self._store.open_partial(index) as partial:
            done = file.size - missing_bytes
            progress.report(done, file.size)
            for batch in _batches(missing):
                async with aclosing(_receive(transfer, batch)) as chunks:
                    async for chunk, data in chunks:
                        await _run_to_completion(_store_chunk, partial, chunk, data)
                        transfer.mark_progress()
                        done += chunk.size
                        progress.report(done, file.size)
            await _run_to_completion(partial.sync)
        await asyncio.to_thread(self._store.finish, file)

    async def _offer(self, file: File, missing_bytes: int) -> Offer | None:
        """Return a delta smaller than the missing chunks, if there is one and room for it."""
        # Starting the process costs more than such a download.
        if missing_bytes < MIN_DELTA_BYTES:
            return None
        bases = likely_bases(await asyncio.to_thread(self._store.installed), file)
        if not bases:
            return None
        patience = min(self._limits.delta_seconds, missing_bytes / CHUNK_BYTES_PER_SECOND)
        deadline = self._clock() + patience
        pause = self._backoff()
        while isinstance(found := await self._source.delta(bases, file), BeingMade):
            remaining = deadline - self._clock()
            if remaining <= 0:
                return None
            wait = max(found.retry_after_seconds, pause.next_seconds())
            await asyncio.sleep(min(remaining, wait))
        if found is None or found.delta.size >= MAX_DELTA_SHARE * missing_bytes:
            return None
        # The restored file is written beside the partial one, so both need room.
        room = self._store.has_room(file.size + found.delta.size)
        return found if room and any(found.base == base.sha256 for base in bases) else None

    async def _fetch_by_delta(self, file: File, offer: Offer, progress: _FileProgress) -> None:
        """Fetch a delta like any file, then restore ``file`` from it; DeltaRefusedError."""
        delta, store = offer.delta, self._store.deltas()
        base = self._store.path(msgspec.structs.replace(delta, sha256=offer.base))
        try:
            if not store.has(delta):
                # A store of its own, so that a delta never gets the name of a model file.
                fetching = Downloader(store, self._source, limits=self._limits, clock=self._clock)
                await fetching._fetch_file(delta, progress, deltas=False)
            with self._store.restoring(file) as destination:
                await restore(base, store.path(delta), destination, file.size)
        except SourceUnavailableError:
            # Keep the partial delta: the next try resumes it.
            raise
        except (DownloadError, ChunkMismatchError) as error:
            store.keep_only(set())
            raise DeltaRefusedError(str(error)) from error
        # A used delta is of no further use: its bytes count against the budget.
        store.keep_only(set())

    def _reuse(self, partial: Partial) -> list[Chunk]:
        """Copy chunks from installed files; return those that still have to be fetched."""
        missing = partial.missing()
        places = self._store.places({chunk.sha256 for chunk in missing})
        return [
            chunk
            for chunk in missing
            if chunk.sha256 not in places or not partial.copy(chunk, places[chunk.sha256])
        ]

    async def _fetch_index(self, file: File, transfer: Transfer) -> ChunkIndex:
        data = await transfer.whole(bytes.fromhex(file.index), MAX_INDEX_BYTES)
        index = decode_index_of(file, data)
        self._store.save_index(index)
        transfer.mark_progress()
        return index


async def _receive(
    transfer: Transfer, batch: Sequence[Chunk]
) -> AsyncGenerator[tuple[Chunk, bytes], None]:
    """Yield the chunks of a batch, cut out of the stream by their known sizes."""
    waiting = iter(batch)
    chunk = next(waiting, None)
    buffer = bytearray()
    async with aclosing(transfer.pieces([each.sha256 for each in batch])) as pieces:
        async for piece in pieces:
            # Pieces and chunks have no common boundaries.
            buffer += piece
            while chunk is not None and len(buffer) >= chunk.size:
                data = bytes(memoryview(buffer)[: chunk.size])
                del buffer[: chunk.size]
                yield chunk, data
                chunk = next(waiting, None)
            # More than was asked for: do not read on, the sizes are checked below.
            if chunk is None and buffer:
                break
    if chunk is not None or buffer:
        raise ChunkMismatchError(
            f"a stream of {len(batch)} chunks has not the length that their index states"
        )


async def _run_to_completion(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``function`` in a thread and wait for its end even if cancelled.

    A file must not be closed under a thread that writes to it: the kernel may have given its
    descriptor to another file.
    """
    # Not a task: the end of the event loop would cancel it while the thread continued.
    call = functools.partial(function, *args, **kwargs)
    running = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            # A second cancellation must not end the wait either.
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
