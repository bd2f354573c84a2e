"""What a variant must be to be kept: how small, and how near to its source."""

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final

from artifact.manifest import Variant
from artifact.sizes import in_bytes
from runtimes.evaluation.comparison import Comparison

# Tells a near miss from its limit.
_told: Final = partial(in_bytes, decimals=2)


class Metric(StrEnum):
    """What can be worse in a variant than in its source."""

    PERPLEXITY = "perplexity"
    ACCURACY = "accuracy"
    COSINE_SIMILARITY = "cosine_similarity"
    MEAN_KL = "mean_kl"
    # The fraction of predictions whose top is not the source's.
    DISAGREEMENT = "disagreement"


class Prioritize(StrEnum):
    """What a search wants most of: it starts at that end."""

    QUALITY = "quality"
    SIZE = "size"


@dataclass(frozen=True, slots=True)
class Degradation:
    """How much worse a metric may be than the source's: as a fraction of that, or plainly."""

    metric: Metric
    relative: float | None = None
    absolute: float | None = None


@dataclass(frozen=True, slots=True)
class Goals:
    """All of them must be met; 0 is no limit. Memory is the larger of predicted and measured."""

    max_degradation: tuple[Degradation, ...] = ()
    max_size_bytes: int = 0
    max_memory_bytes: int = 0
    prioritize: Prioritize | None = None

    @property
    def smallest_first(self) -> bool:
        """By itself a search for what is good enough begins small, one for what fits large."""
        if self.prioritize is None:
            return bool(self.max_degradation)
        return self.prioritize is Prioritize.SIZE


def miss_of_size(goals: Goals, size_bytes: int, memory_bytes: int = 0) -> str:
    """What is too large; empty when nothing is."""
    if goals.max_size_bytes and size_bytes > goals.max_size_bytes:
        return f"{_told(size_bytes)} is more than max-size {_told(goals.max_size_bytes)}"
    if goals.max_memory_bytes and memory_bytes > goals.max_memory_bytes:
        return (
            f"it needs {_told(memory_bytes)} of memory, more than max-memory "
            f"{_told(goals.max_memory_bytes)}"
        )
    return ""


def miss_of_quality(goals: Goals, variant: Variant, comparison: Comparison) -> str:
    """What is too bad, or was not measured; empty when nothing is."""
    if missed := miss_of_size(goals, variant.size_bytes, variant.measured_memory_bytes):
        return missed
    for goal in goals.max_degradation:
        found = _values(goal.metric, comparison)
        if found is None:
            return f"{goal.metric} cannot be measured on {comparison.quality.dataset}"
        worse, source, value = found
        if goal.absolute is not None and worse > goal.absolute:
            return (
                f"{goal.metric} {value:.4g} is worse than the source's {source:.4g} by more than "
                f"{goal.absolute:g}"
            )
        if goal.relative is not None and worse > goal.relative * abs(source):
            return (
                f"{goal.metric} {value:.4g} is worse than the source's {source:.4g} by more than "
                f"{goal.relative:.3g} of it"
            )
    return ""


def _values(metric: Metric, comparison: Comparison) -> tuple[float, float, float] | None:
    """By how much it is worse, the source's value, the variant's."""
    divergence = comparison.divergence
    if metric in {Metric.MEAN_KL, Metric.DISAGREEMENT}:
        if divergence is None:
            return None
        far = divergence.mean_kl if metric is Metric.MEAN_KL else 1 - divergence.same_top
        return None if far is None else (far, 0.0, far)
    source, quality = comparison.source_quality, comparison.quality
    if quality.metric != metric:
        return None
    worse = quality.value - source.value
    return -worse if quality.higher_is_better else worse, source.value, quality.value
