"""What one download receives: counted, in bounds, fast enough and before its deadline."""

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
    """Where chunks come from, and deltas, which are files made of chunks."""

    def fetch(self, digests: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
        """The chunks' bytes, concatenated in this order, in pieces of any size.

        Raises SourceUnavailableError when trying again may help, ChunkMissingError otherwise.
        """

    async def delta(self, bases: Sequence[File], target: File) -> Offer | BeingMade | None:
        """What turns one of ``bases`` into ``target``; SourceUnavailableError."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a download is given up."""

    total_seconds: float = 24 * 3600
    # The least rate, taken over each window; a slower connection is broken off and tried again.
    least_bytes_per_second: float = 1024
    window_seconds: float = 30
    # How long at most a delta that is being made is waited for.
    delta_seconds: float = 120


LIMITS: Final = Limits()


@dataclass(slots=True)
class Tally:
    """How far a download is. ``received_bytes`` came over the wire, repeated ones included."""

    done_bytes: int = 0
    total_bytes: int = 0
    received_bytes: int = 0


class Line:
    """From a source to one download, whose time begins now."""

    def __init__(
        self,
        source: ChunkSource,
        tally: Tally,
        limits: Limits = LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self.tally = tally
        self._limits = limits
        self._clock = clock
        self._deadline = clock() + limits.total_seconds

    @property
    def over(self) -> bool:
        """Whether the deadline has passed."""
        return self._clock() >= self._deadline

    async def pieces(self, digests: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
        """The chunks' bytes in pieces of any size; SlowDownloadError, and what the source raises.

        Close it (contextlib.aclosing): only that ends the call of a source that goes on.
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
                self.tally.received_bytes += len(piece)
                in_window += len(piece)
                elapsed = self._clock() - began
                if elapsed >= window:
                    if in_window < elapsed * self._limits.least_bytes_per_second:
                        raise _too_slow(in_window, elapsed)
                    began, in_window = self._clock(), 0
                if self.over:
                    raise _too_slow(self.tally.received_bytes, self._limits.total_seconds)
                yield piece

    async def whole(self, digest: bytes, most_bytes: int) -> bytes:
        """One chunk that is small, not yet verified; ChunkMismatchError when it does not end."""
        data = bytearray()
        async with aclosing(self.pieces([digest])) as pieces:
            async for piece in pieces:
                data += piece
                if len(data) > most_bytes:
                    raise ChunkMismatchError(
                        f"{digest.hex()} has more than {most_bytes} bytes",
                        advice="What the server sends is not what was published.",
                    )
        return bytes(data)


def _too_slow(received: int, seconds: float) -> SlowDownloadError:
    return SlowDownloadError(
        f"{received} bytes came in {seconds:.0f} s",
        advice="Check the box's connection; the download goes on where it stopped.",
    )
