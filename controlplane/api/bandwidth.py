"""How fast chunks go out: at most so many bytes a second to one device, and to all of one site.

Rates are this process's; of several replicas, each holds to them by itself.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

# The label that says which devices share a line.
SITE_LABEL: Final = "site"
# Sent at once before anything waits; also the least that is worth a message of its own.
LEAST_BURST_BYTES: Final = 16 << 10
BURST_SECONDS: Final = 0.25
# So many buckets are kept before those that have filled up again are forgotten.
MAX_IDLE: Final = 4096


@dataclass(slots=True)
class _Bucket:
    """Bytes that may go out now; below zero is a debt that time pays."""

    level: float
    at: float


class Bandwidth:
    """Paces downloads. A rate of None is no limit."""

    def __init__(
        self,
        device_bytes_per_second: int | None,
        site_bytes_per_second: int | None,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._device_rate = device_bytes_per_second
        self._site_rate = site_bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    async def paced(
        self, device_id: str, labels: Mapping[str, str], data: bytes
    ) -> AsyncIterator[bytes]:
        """``data`` in pieces, each when its turn has come. Small pieces keep a slow line moving."""
        limits = []
        if self._device_rate is not None:
            limits.append((("device", device_id), self._device_rate))
        if self._site_rate is not None and (site := labels.get(SITE_LABEL)):
            limits.append((("site", site), self._site_rate))
        if not limits:
            yield data
            return
        size = min(_burst(rate) for _, rate in limits)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            wait = max(self._take(key, rate, len(piece)) for key, rate in limits)
            if wait > 0:
                await self._sleep(wait)
            yield piece

    def _take(self, key: tuple[str, str], rate: int, size: int) -> float:
        """Seconds until so many bytes more are within the rate."""
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= MAX_IDLE:
                self._forget_idle(now)
            bucket = self._buckets[key] = _Bucket(_burst(rate), now)
        bucket.level = min(_burst(rate), bucket.level + (now - bucket.at) * rate) - size
        bucket.at = now
        return max(0.0, -bucket.level / rate)

    def _forget_idle(self, now: float) -> None:
        idle = [key for key, bucket in self._buckets.items() if now - bucket.at > 1 + BURST_SECONDS]
        for key in idle:
            if self._buckets[key].level >= 0:
                del self._buckets[key]


def _burst(rate: int) -> int:
    return max(LEAST_BURST_BYTES, int(rate * BURST_SECONDS))
