"""Reception of one download: bytes are counted and bounded in size, rate and time."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Protocol

from agent.errors import SlowDownloadError
from agent.storage.deltas import BeingMade, Offer
from artifact.errors import ChunkMismatchError
from artifact.manifest import File


class ChunkSource(Protocol):
    """A server of chunks and of deltas, which are files made of chunks."""

    def fetch(self, digests: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
        """Yield the chunks' bytes, concatenated in this order, in pieces of any size.

        Raises SourceUnavailableError when trying again may help, ChunkMissingError otherwise.
        """

    async def delta(self, bases: Sequence[File], target: File) -> Offer | BeingMade | None:
        """Return a delta from one of ``bases`` to ``target``; SourceUnavailableError."""


@dataclass(frozen=True, slots=True)
class TransferLimits:
    """Bounds in time and rate after which a download ends with SlowDownloadError."""

    # Without a verified chunk. A download of any length may go on as long as it progresses.
    stalled_seconds: float = 24 * 3600
    # The least rate over each window. A slower connection is closed and tried again, since a new
    # one may take another route.
    least_bytes_per_second: float = 1024
    window_seconds: float = 30
    # The longest wait for a delta that the server is still computing.
    delta_seconds: float = 120


DEFAULT_LIMITS: Final = TransferLimits()


@dataclass(slots=True)
class TransferProgress:
    """Bytes of one download. ``received_bytes`` counts the wire, repetitions included."""

    done_bytes: int = 0
    total_bytes: int = 0
    received_bytes: int = 0


class Transfer:
    """Bytes from a source to one download; its deadline counts from the last verified chunk."""

    def __init__(
        self,
        source: ChunkSource,
        progress: TransferProgress,
        limits: TransferLimits = DEFAULT_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self.progress = progress
        self._limits = limits
        self._clock = clock
        self._progressed_at = clock()

    def mark_progress(self) -> None:
        """Start the deadline again: a chunk was verified and stored."""
        self._progressed_at = self._clock()

    @property
    def is_stalled(self) -> bool:
        """True once ``stalled_seconds`` have passed without progress."""
        return self._clock() - self._progressed_at >= self._limits.stalled_seconds

    async def pieces(self, digests: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
        """Yield the chunks' bytes in pieces of any size.

        Raises SlowDownloadError and whatever the source raises. Use contextlib.aclosing: without
        it the call to a source that keeps sending stays open.
        """
        window = self._limits.window_seconds
        began, in_window = self._clock(), 0
        async with aclosing(self._source.fetch(digests)) as source:
            while True:
                try:
                    async with asyncio.timeout(window):
                        piece = await anext(source)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise _too_slow(0, window) from None
                self.progress.received_bytes += len(piece)
                in_window += len(piece)
                elapsed = self._clock() - began
                if elapsed >= window:
                    if in_window < elapsed * self._limits.least_bytes_per_second:
                        raise _too_slow(in_window, elapsed)
                    began, in_window = self._clock(), 0
                # Bytes alone are no progress: a server could send wrong ones without end.
                if self.is_stalled:
                    raise _too_slow(self.progress.received_bytes, self._limits.stalled_seconds)
                yield piece

    async def whole(self, digest: bytes, most_bytes: int) -> bytes:
        """Return one small chunk, not yet verified; ChunkMismatchError above ``most_bytes``."""
        data = bytearray()
        async with aclosing(self.pieces([digest])) as pieces:
            async for piece in pieces:
                data += piece
                if len(data) > most_bytes:
                    raise ChunkMismatchError(
                        f"{digest.hex()} has more than the maximum of {most_bytes} bytes",
                        advice="The server does not send what was published: publish it again.",
                    )
        return bytes(data)


def _too_slow(received: int, seconds: float) -> SlowDownloadError:
    return SlowDownloadError(
        f"{received} bytes arrived within {seconds:.0f} s, less than the minimum rate",
        advice="Check the box's connection; the download resumes where it stopped.",
    )
