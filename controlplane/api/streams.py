"""What devices hold open: one stream each, a few downloads, and not too many new ones at once."""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from controlplane.errors import ControlPlaneError, OverloadedError, StaleError, StoppingError
from controlplane.metrics import Metrics

# A storm is spread over at least this long.
LEAST_RETRY_SECONDS: Final = 1.0
# An agent has one, and one more while it changes its certificate.
MAX_DOWNLOADS: Final = 8
# Streams that one device may open at once, and each second: far more than a bad line asks for.
DEVICE_BURST: Final = 64
DEVICE_PER_SECOND: Final = 1.0
# So many devices' are kept before those that have filled up again are forgotten.
MAX_IDLE: Final = 1 << 16


@dataclass(slots=True, eq=False)
class Stream:
    """One device's stream."""

    device_id: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    _reason: ControlPlaneError | None = None
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, reason: ControlPlaneError) -> None:
        """Whoever serves it is told so, and why."""
        self._reason = self._reason or reason
        self._ended.set()

    async def ended(self) -> ControlPlaneError:
        """Waits until it must end; the reason."""
        await self._ended.wait()
        assert self._reason is not None  # noqa: S101 - set before the event
        return self._reason


class Streams:
    """Every open stream of this process."""

    def __init__(self, metrics: Metrics) -> None:
        self._open: dict[str, Stream] = {}
        self._metrics = metrics

    def open(self, device_id: str) -> Stream:
        """A new stream in place of the device's older one, if any."""
        older = self._open.get(device_id)
        stream = Stream(device_id)
        self._open[device_id] = stream
        if older is not None:
            older.end(
                StaleError("this device has opened a newer stream", advice="Keep one stream open.")
            )
        self._metrics.streams.set(len(self._open))
        return stream

    def close(self, stream: Stream) -> None:
        if self._open.get(stream.device_id) is stream:
            del self._open[stream.device_id]
        self._metrics.streams.set(len(self._open))

    def end_all(self) -> None:
        """The server goes down: devices need not find out by themselves."""
        for stream in self._open.values():
            stream.end(StoppingError("this server is stopping", advice="Connect again soon."))

    def devices(self) -> list[str]:
        return list(self._open)


class Downloads:
    """How many downloads each device has open: each that it does not read holds memory here."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def open(self, device_id: str) -> Iterator[None]:
        """OverloadedError when the device has MAX_DOWNLOADS already."""
        if self._open[device_id] >= MAX_DOWNLOADS:
            raise OverloadedError(
                f"this device has {MAX_DOWNLOADS} downloads open already",
                retry_after_seconds=LEAST_RETRY_SECONDS,
                advice="Read them, or end them.",
            )
        self._open[device_id] += 1
        try:
            yield
        finally:
            self._open[device_id] -= 1
            if not self._open[device_id]:
                del self._open[device_id]


class TokenBucket:
    """Lets ``burst`` through at once, and ``per_second`` after that."""

    def __init__(self, burst: int, per_second: float, clock: Callable[[], float]) -> None:
        self._burst = burst
        self._per_second = per_second
        self._clock = clock
        self._level = float(burst)
        self._filled_at = clock()

    @property
    def is_full(self) -> bool:
        """As one that was just made."""
        self._fill()
        return self._level >= self._burst

    def take(self, refusal: str) -> None:
        """OverloadedError in these words when it is empty; it says when to come back."""
        self._fill()
        if self._level < 1:
            wait = max(LEAST_RETRY_SECONDS, (1 - self._level) / self._per_second)
            raise OverloadedError(
                refusal, retry_after_seconds=wait, advice="The agent comes back by itself."
            )
        self._level -= 1

    def _fill(self) -> None:
        now = self._clock()
        filled = (now - self._filled_at) * self._per_second
        self._level = min(self._burst, self._level + filled)
        self._filled_at = now


class Admission:
    """Who may open a stream now: the fleet not all at once, and no device in others' places."""

    def __init__(self, burst: int, per_second: float, clock: Callable[[], float]) -> None:
        self._fleet = TokenBucket(burst, per_second, clock)
        self._refusal = f"more than {per_second:g} devices a second are connecting"
        self._clock = clock
        self._devices: dict[str, TokenBucket] = {}

    def take(self, device_id: str) -> None:
        """OverloadedError when this device, or all together, should wait."""
        bucket = self._devices.get(device_id)
        if bucket is None:
            if len(self._devices) >= MAX_IDLE:
                self._devices = {
                    each: held for each, held in self._devices.items() if not held.is_full
                }
            bucket = TokenBucket(DEVICE_BURST, DEVICE_PER_SECOND, self._clock)
            self._devices[device_id] = bucket
        bucket.take("this device opens streams too often")
        self._fleet.take(self._refusal)
