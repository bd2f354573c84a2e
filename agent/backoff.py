"""Waits between retries: exponential, bounded, with full jitter.

Brooker, "Exponential Backoff And Jitter" (2015): a uniform draw between zero and the bound spreads
a fleet that lost its server at one moment better than a fixed step with a little noise.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """One series of retries; ``uniform`` draws a number between two bounds."""

    first_seconds: float
    most_seconds: float
    uniform: Callable[[float, float], float] = random.uniform
    _bound: float = field(init=False, default=0.0)

    def next_seconds(self, asked_seconds: float = 0.0) -> float:
        """Return the next wait, never less than the server asked for."""
        self._bound = min(self.most_seconds, max(self.first_seconds, 2 * self._bound))
        return asked_seconds + self.uniform(0, self._bound)

    def reset(self) -> None:
        """Start the next series from the first step, after a success."""
        self._bound = 0.0
