"""Goals that a variant must meet: limits of size, memory and degradation."""

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final

from artifact.manifest import Variant
from artifact.sizes import in_bytes
from runtimes.evaluation.comparison import Comparison

# Two decimals, so that a near miss prints differently from its limit.
_formatted: Final = partial(in_bytes, decimals=2)


class Metric(StrEnum):
    """Metrics by which a variant is compared with its source."""

    PERPLEXITY = "perplexity"
    ACCURACY = "accuracy"
    COSINE_SIMILARITY = "cosine_similarity"
    MEAN_KL = "mean_kl"
    # The fraction of predictions whose top is not the source's.
    DISAGREEMENT = "disagreement"


class Prioritize(StrEnum):
    """The end of the candidates, best or smallest, at which a search starts."""

    QUALITY = "quality"
    SIZE = "size"


@dataclass(frozen=True, slots=True)
class Degradation:
    """Limit of how much worse a metric may be: a fraction of the source's value, or absolute."""

    metric: Metric
    relative: float | None = None
    absolute: float | None = None


@dataclass(frozen=True, slots=True)
class Goals:
    """Limits that a variant must all meet; 0 is no limit.

    Memory is the larger of predicted and measured bytes.
    """

    max_degradation: tuple[Degradation, ...] = ()
    max_size_bytes: int = 0
    max_memory_bytes: int = 0
    prioritize: Prioritize | None = None

    @property
    def smallest_first(self) -> bool:
        """True if the search starts with the smallest candidate.

        Without ``prioritize``, a search with a degradation limit starts small, because the first
        variant that is good enough is then the smallest; a search with only size limits starts
        large.
        """
        if self.prioritize is None:
            return bool(self.max_degradation)
        return self.prioritize is Prioritize.SIZE


def miss_of_size(goals: Goals, size_bytes: int, memory_bytes: int = 0) -> str:
    """Describe which limit of size or memory is exceeded; return an empty string if none is."""
    if goals.max_size_bytes and size_bytes > goals.max_size_bytes:
        return f"{_formatted(size_bytes)} is more than max-size {_formatted(goals.max_size_bytes)}"
    if goals.max_memory_bytes and memory_bytes > goals.max_memory_bytes:
        return (
            f"it needs {_formatted(memory_bytes)} of memory, more than max-memory "
            f"{_formatted(goals.max_memory_bytes)}"
        )
    return ""


def miss_of_quality(goals: Goals, variant: Variant, comparison: Comparison) -> str:
    """Describe the first goal that is missed or unmeasurable; return an empty string if all met."""
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
    """Return the degradation, the source's value and the variant's, or None if not measured."""
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
