"""Bandwidth limits of chunk downloads, in bytes per second per device and per site.

Rates apply to this process; each replica enforces them separately.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final

from controlplane.api.token_bucket import TokenBuckets

# The label whose value names the line that devices share.
SITE_LABEL: Final = "site"
# Sent at once before pacing begins; also the smallest piece worth a message.
LEAST_BURST_BYTES: Final = 16 << 10
BURST_SECONDS: Final = 0.25
# At this number of devices and sites, buckets that are full again are dropped.
MAX_BUCKETS: Final = 4096


class Bandwidth:
    """Paces downloads. A rate of None means no limit."""

    def __init__(
        self,
        device_bytes_per_second: int | None,
        site_bytes_per_second: int | None,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._device_rate = device_bytes_per_second
        self._site_rate = site_bytes_per_second
        self._sleep = sleep
        self._buckets = TokenBuckets[tuple[str, str]](clock, MAX_BUCKETS)

    async def paced(
        self, device_id: str, labels: Mapping[str, str], data: bytes
    ) -> AsyncIterator[bytes]:
        """Yield ``data`` in small pieces, each when it may be sent: a slow line keeps moving."""
        limits = []
        if self._device_rate is not None:
            limits.append((("device", device_id), self._device_rate))
        if self._site_rate is not None and (site := labels.get(SITE_LABEL)):
            limits.append((("site", site), self._site_rate))
        if not limits:
            yield data
            return
        # Pieces of a quarter of a second: with larger ones a slow line would look dead in between.
        size = min(_burst(rate) for _, rate in limits)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            # Spent before the wait, so parallel downloads queue behind each other's debt.
            wait = max(
                self._buckets.of(key, _burst(rate), rate).spend(len(piece)) for key, rate in limits
            )
            if wait > 0:
                await self._sleep(wait)
            yield piece


def _burst(rate: int) -> int:
    return max(LEAST_BURST_BYTES, int(rate * BURST_SECONDS))
