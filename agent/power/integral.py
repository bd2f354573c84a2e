"""Energy as the integral of sampled power."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from agent.errors import MeterLostError
from artifact.window import Provenance

SAMPLE_SECONDS: Final = 0.5
# Bounds for plausibility: after a suspend the gap is unknown, and faulty sensors report any number.
LONGEST_GAP_SECONDS: Final = 60.0
MOST_WATTS: Final = 10_000.0


@dataclass(slots=True)
class IntegratedMeter:
    """The integral of ``watts`` by the trapezoid rule; ``watts`` raises OSError or ValueError."""

    watts: Callable[[], float]
    provenance: Provenance
    clock: Callable[[], float] = time.monotonic
    sample_interval_seconds: float = SAMPLE_SECONDS
    _joules: float = field(init=False, default=0.0)
    _watts: float = field(init=False, default=0.0)
    _at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._watts, self._at = self._bounded_watts(), self.clock()

    def read_joules(self) -> float:
        """Return the joules since the meter was opened; MeterLostError if the sensor is gone."""
        try:
            watts, now = self._bounded_watts(), self.clock()
        except (OSError, ValueError) as error:
            raise MeterLostError(f"{self.provenance.source} does not answer: {error}") from error
        # Across a gap that is too long, or backwards, the power is unknown: no energy is added.
        elapsed = now - self._at
        if 0 < elapsed <= LONGEST_GAP_SECONDS:
            self._joules += (self._watts + watts) / 2 * elapsed
        self._watts, self._at = watts, now
        return self._joules

    def _bounded_watts(self) -> float:
        watts = self.watts()
        if not 0 <= watts <= MOST_WATTS:
            raise ValueError(f"the sensor reports {watts} W; expected 0 to {MOST_WATTS:,.0f}")
        return watts
