"""Downloads are bounded in bytes, rate and time."""

import itertools
from collections.abc import AsyncGenerator, Sequence

import pytest

from agent.errors import SlowDownloadError
from agent.storage.deltas import BeingMade, Offer
from agent.storage.transfer import Transfer, TransferLimits, TransferProgress
from artifact.errors import ChunkMismatchError
from artifact.manifest import File

DIGEST = bytes(32)


class Endless:
    """A server that never stops sending; ``open`` is True until its call is closed."""

    def __init__(self, piece: bytes) -> None:
        self.piece = piece
        self.open = False

    async def fetch(self, digests: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
        self.open = True
        try:
            while True:
                yield self.piece
        finally:
            self.open = False

    async def delta(self, bases: Sequence[File], target: File) -> Offer | BeingMade | None:
        raise AssertionError


async def test_what_does_not_end_is_refused_one_piece_after_its_bound() -> None:
    server, progress = Endless(b"x" * 10), TransferProgress()
    with pytest.raises(ChunkMismatchError, match="more than the maximum of 95 bytes") as refused:
        await Transfer(server, progress).whole(DIGEST, 95)
    assert refused.value.advice
    assert progress.received_bytes == 100
    assert not server.open


@pytest.mark.parametrize(("piece", "seconds"), [(b"xy", 8), (b"", 8), (b"x" * 3, 20)])
async def test_too_slow_is_broken_off_after_a_window_and_anything_at_the_deadline(
    piece: bytes, seconds: int
) -> None:
    """The clock advances one second per piece: 2 bytes per second are too few, 3 suffice."""
    limits = TransferLimits(stalled_seconds=20, least_bytes_per_second=2.5, window_seconds=4)
    server, progress, ticks = Endless(piece), TransferProgress(), itertools.count()
    with pytest.raises(SlowDownloadError):
        await Transfer(server, progress, limits, lambda: float(next(ticks))).whole(DIGEST, 10**6)
    assert next(ticks) <= seconds + 4
    assert not server.open
