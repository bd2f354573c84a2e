"""Token buckets: they admit a burst at once and a steady rate after it."""

from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

# At this number of keys, buckets that are full again are dropped.
MAX_BUCKETS: Final = 1 << 16

Key = TypeVar("Key", bound=Hashable)


class TokenBucket:
    """A bucket of ``burst`` tokens that refills at ``per_second``.

    ``clock`` returns seconds. The level may fall below zero, a debt that time repays.
    """

    def __init__(self, burst: float, per_second: float, clock: Callable[[], float]) -> None:
        self._burst = burst
        self._per_second = per_second
        self._clock = clock
        self._level = float(burst)
        self._filled_at = clock()

    @property
    def is_full(self) -> bool:
        """True if the bucket is in its initial state, so that dropping it changes nothing."""
        return self._filled() >= self._burst

    def take_one(self) -> float:
        """Take a token if there is one and return 0; else return the seconds until there is."""
        level = self._filled()
        if level < 1:
            return (1 - level) / self._per_second
        self._level -= 1
        return 0.0

    def spend(self, tokens: float) -> float:
        """Take tokens, into debt if needed; return the seconds until the debt is repaid."""
        self._level = self._filled() - tokens
        return max(0.0, -self._level / self._per_second)

    def _filled(self) -> float:
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        return self._level


class TokenBuckets(Generic[Key]):
    """A bucket per key, made on first use; full ones are dropped at ``most`` keys."""

    def __init__(self, clock: Callable[[], float], most: int = MAX_BUCKETS) -> None:
        self._clock = clock
        self._most = most
        self._buckets: dict[Key, TokenBucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def of(self, key: Key, burst: float, per_second: float) -> TokenBucket:
        """Return the key's bucket; ``burst`` and ``per_second`` apply when it is made."""
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._most:
                # Only full buckets: dropping another one would give its owner a new burst.
                self._buckets = {
                    key: bucket for key, bucket in self._buckets.items() if not bucket.is_full
                }
            bucket = self._buckets[key] = TokenBucket(burst, per_second, self._clock)
        return bucket
