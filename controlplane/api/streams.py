"""Open streams and downloads per device, and admission of new streams."""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from controlplane.api.token_bucket import MAX_BUCKETS, TokenBucket, TokenBuckets
from controlplane.errors import ControlPlaneError, OverloadedError, StaleError, StoppingError
from controlplane.metrics import Metrics

# Shortest time over which a reconnect storm is spread.
LEAST_RETRY_SECONDS: Final = 1.0
# Burst and rate of new streams per device: far more than a bad line needs.
DEVICE_BURST: Final = 64
DEVICE_PER_SECOND: Final = 1.0


@dataclass(slots=True, eq=False)
class Stream:
    """One device's stream."""

    device_id: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    _reason: ControlPlaneError | None = None
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, reason: ControlPlaneError) -> None:
        """End the stream with a reason for its servicer."""
        self._reason = self._reason or reason
        self._ended.set()

    async def ended(self) -> ControlPlaneError:
        """Wait until the stream must end; return the reason."""
        await self._ended.wait()
        assert self._reason is not None  # noqa: S101 - set before the event
        return self._reason


class Streams:
    """All open streams of this process."""

    def __init__(self, metrics: Metrics) -> None:
        self._open: dict[str, Stream] = {}
        self._metrics = metrics

    def open(self, device_id: str) -> Stream:
        """Open a stream; end the device's older one, if any."""
        older = self._open.get(device_id)
        stream = Stream(device_id)
        self._open[device_id] = stream
        # A device whose line broke connects again long before the old stream's keepalive fails.
        if older is not None:
            older.end(
                StaleError("this device has opened a newer stream", advice="Keep one stream open.")
            )
        self._metrics.streams.set(len(self._open))
        return stream

    def close(self, stream: Stream) -> None:
        # An older stream ends after its successor has taken the place.
        if self._open.get(stream.device_id) is stream:
            del self._open[stream.device_id]
        self._metrics.streams.set(len(self._open))

    def end_all(self) -> None:
        """End all streams at shutdown, so that devices reconnect at once."""
        for stream in self._open.values():
            stream.end(StoppingError("this server is stopping", advice="Connect again soon."))

    def devices(self) -> list[str]:
        return list(self._open)


class OpenCalls:
    """Counts calls in progress per key (a device, an address), at most ``most`` each."""

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[None]:
        """Count a call; raise OverloadedError if the key has ``most`` open."""
        if self._open[key] >= self._most:
            raise OverloadedError(
                f"{self._what} has {self._most} calls of this kind open already",
                retry_after_seconds=LEAST_RETRY_SECONDS,
                advice="Read them, or end them.",
            )
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]


class Admission:
    """Rate limits for new streams: of the whole fleet, and of each device."""

    def __init__(self, burst: int, per_second: float, clock: Callable[[], float]) -> None:
        self._fleet = TokenBucket(burst, per_second, clock)
        self._refusal = f"more than {per_second:g} devices a second are connecting"
        self._devices = TokenBuckets[str](clock, MAX_BUCKETS)

    def take(self, device_id: str) -> None:
        """Take a token of the device and of the fleet; raise OverloadedError if either is empty."""
        device = self._devices.of(device_id, DEVICE_BURST, DEVICE_PER_SECOND)
        _take_or_refuse(device, "this device opens streams too often")
        _take_or_refuse(self._fleet, self._refusal)


def _take_or_refuse(bucket: TokenBucket, refusal: str) -> None:
    wait_seconds = bucket.take_one()
    if wait_seconds > 0:
        raise OverloadedError(
            refusal,
            retry_after_seconds=max(LEAST_RETRY_SECONDS, wait_seconds),
            advice="The agent connects again by itself.",
        )
