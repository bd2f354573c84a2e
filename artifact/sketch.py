"""DDSketch: mergeable quantiles within a relative error.

Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch with relative-error
guarantees", PVLDB 12(12), 2019. A value v > 0 falls in bin ceil(log(v) / log(gamma)) with gamma =
(1 + a) / (1 - a); every value of bin i is within a of 2 gamma^i / (gamma + 1).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from artifact.errors import InvalidSketchError

RELATIVE_ACCURACY = 0.01
# Seconds from a nanosecond to thirty years; values beyond count as the nearest bound.
MIN_VALUE = 1e-9
MAX_VALUE = 1e9
MAX_COUNT = 1 << 53


@dataclass(slots=True)
class Sketch:
    """Counts per bin of non-negative values; bounded, since values are (MIN_VALUE, MAX_VALUE)."""

    bins: dict[int, int] = field(default_factory=dict)
    zeros: int = 0
    sum: float = 0.0
    relative_accuracy: float = RELATIVE_ACCURACY

    @classmethod
    def of(cls, values: Iterable[float], relative_accuracy: float = RELATIVE_ACCURACY) -> "Sketch":
        """Build a sketch; raise InvalidSketchError for a negative or non-finite value."""
        sketch = cls(relative_accuracy=relative_accuracy)
        for value in values:
            sketch.add(value)
        return sketch

    def add(self, value: float) -> None:
        """Add one value; raise InvalidSketchError if it is negative or not finite."""
        if not math.isfinite(value) or value < 0:
            raise InvalidSketchError(
                f"{value!r} is not a duration", advice="Measure with a monotonic clock."
            )
        self.sum += value
        if value == 0:
            self.zeros += 1
            return
        index = _index(value, self.relative_accuracy)
        self.bins[index] = self.bins.get(index, 0) + 1

    @property
    def count(self) -> int:
        """Number of values added."""
        return self.zeros + sum(self.bins.values())

    def merge(self, other: "Sketch") -> "Sketch":
        """Return the sketch of both streams; raise InvalidSketchError if accuracies differ."""
        if self.relative_accuracy != other.relative_accuracy:
            raise InvalidSketchError(
                f"sketches of accuracy {self.relative_accuracy} and {other.relative_accuracy} "
                "do not add up",
                advice=f"Every agent must sketch with {RELATIVE_ACCURACY}.",
            )
        bins = dict(self.bins)
        for index, count in other.bins.items():
            bins[index] = bins.get(index, 0) + count
        return Sketch(bins, self.zeros + other.zeros, self.sum + other.sum, self.relative_accuracy)

    def quantile(self, fraction: float) -> float | None:
        """Return the value below which ``fraction`` of the stream lies; None if it is empty."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"a quantile lies between 0 and 1, not at {fraction}")
        if not (count := self.count):
            return None
        # Rank of the lower neighbour, as in the paper: the estimate is within the accuracy of the
        # value at that rank in the sorted stream.
        rank = fraction * (count - 1)
        seen = self.zeros
        if seen > rank:
            return 0.0
        gamma = _gamma(self.relative_accuracy)
        for index in sorted(self.bins):
            seen += self.bins[index]
            if seen > rank:
                # Both ends of the bin are equally far from it, relative to their values.
                return float(2 * gamma**index / (gamma + 1))
        raise AssertionError("counts add up to less than their sum")


def check_sketch(sketch: Sketch) -> None:
    """Raise InvalidSketchError unless a correct agent can have made the sketch."""
    if sketch.relative_accuracy != RELATIVE_ACCURACY:
        raise InvalidSketchError(
            f"a sketch of accuracy {sketch.relative_accuracy} cannot be merged",
            advice=f"Every agent must sketch with {RELATIVE_ACCURACY}.",
        )
    # A bin that add() cannot produce would let a sketch grow without bound.
    lowest, highest = _index(MIN_VALUE, RELATIVE_ACCURACY), _index(MAX_VALUE, RELATIVE_ACCURACY)
    for index, count in sketch.bins.items():
        if not lowest <= index <= highest or not 0 < count <= MAX_COUNT:
            raise InvalidSketchError(
                f"bin {index} with count {count} is out of bounds",
                advice=f"Values lie between {MIN_VALUE} and {MAX_VALUE}, counts above 0.",
            )
    if not 0 <= sketch.zeros <= MAX_COUNT or not math.isfinite(sketch.sum) or sketch.sum < 0:
        raise InvalidSketchError(
            f"a sketch with {sketch.zeros} zeros and the sum {sketch.sum} is out of bounds",
            advice="Update the agent; it sends figures that cannot be measured.",
        )


def _gamma(accuracy: float) -> float:
    return (1 + accuracy) / (1 - accuracy)


def _index(value: float, accuracy: float) -> int:
    # Otherwise bins would reach down to the smallest float: 36,000 more of them.
    clamped = min(max(value, MIN_VALUE), MAX_VALUE)
    return math.ceil(math.log(clamped) / math.log(_gamma(accuracy)))
