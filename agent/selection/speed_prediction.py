"""Predict the speed, TTFT and energy of a variant on this box.

Sources in order: the variant's own measurement on this box, the median of its hardware class, a
roofline (Williams, Waterman, Patterson, CACM 2009). Decoding a token reads every weight once: its
time is the weights' bytes over the rate at which this box reads and multiplies weights of that
type, plus a constant per token. Both terms are fitted to this box's measurements of other variants
by least squares of the relative errors, with a ridge penalty towards the bare roofline: a single
measurement shifts the fit, many determine it. The residual is corrected per quantization. Prefill
is bound by arithmetic, two operations per weight and token. So is an embedding, whose rate counts
texts: each takes the arithmetic of a prompt, and reads every weight at least once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Final

from agent.selection.figures import Figures
from agent.selection.measurement import Measurement, Prior
from artifact.device_facts import MicroBenchmark
from artifact.manifest import Task, Variant

# Prior of the constant per token: sampling, thread synchronisation, the pipe between processes.
TOKEN_SECONDS: Final = 50e-6
# Ridge penalty, in measurements: PULL measurements that say "as fast as the roofline" counter one
# that says "twice as slow", or that spends TOKEN_SHARE of a token's time in the constant.
PULL: Final = 0.1
TOKEN_SHARE: Final = 0.7
# The constant per token grows with the number of matrices. CONSTANT_MATRICES stands for the part
# that is independent of it; the unit is a model whose sum is UNIT_MATRICES.
CONSTANT_MATRICES: Final = 25
UNIT_MATRICES: Final = 100
# Caches may make a box faster than its roofline, but not by more than this.
LEAST_SLOWNESS: Final = 0.2
# One measurement of the same quantization determines two thirds of the residual: 1 / (1 + 0.5).
RESIDUAL_PULL: Final = 0.5
# Approximate tokens of probation's prompt and embedding text with a vocabulary of tens of
# thousands; smaller vocabularies give more tokens for the same text.
PROMPT_TOKENS: Final = 16
# Prefixes of the weight types that are multiplied as floats; all others are multiplied as int8.
FLOATS: Final = ("f", "bf")


class Source(StrEnum):
    """Source of a prediction, best first."""

    MEASURED_HERE = "measured here before"
    HARDWARE_CLASS = "same hardware class"
    CALIBRATED = "calibrated roofline"
    ROOFLINE = "roofline"


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted figures but memory (agent.selection.memory_prediction), and their source."""

    figures: Figures
    source: Source


@dataclass(frozen=True, slots=True)
class Predictor:
    """Predicts the variants of one model on one box from measurements, priors and the roofline."""

    model: str
    task: Task
    benchmark: MicroBenchmark
    measured: Sequence[Measurement] = ()
    priors: Mapping[str, Prior] | None = None

    def predict(self, variant: Variant) -> Prediction:
        """Predict one variant of the model."""
        for one in self.measured:
            if one.is_of(self.model, variant.name):
                return Prediction(one.figures, Source.MEASURED_HERE)
        prior = (self.priors or {}).get(variant.name)
        if prior is not None:
            figures = Figures(
                tokens_per_second=prior.tokens_per_second, joules_per_token=prior.joules_per_token
            )
            return Prediction(figures, Source.HARDWARE_CLASS)
        alike = [
            one
            for one in self.measured
            if (one.runtime, one.task) == (variant.runtime, self.task) and one.tokens_per_second > 0
        ]
        seconds = self._token_seconds(variant, alike)
        watts = [
            one.joules_per_token * one.tokens_per_second for one in alike if one.joules_per_token
        ]
        figures = Figures(
            tokens_per_second=1 / seconds if seconds else 0.0,
            joules_per_token=median(watts) * seconds if watts and seconds else None,
            ttft_seconds=self._ttft_seconds(variant, seconds, alike),
        )
        return Prediction(figures, Source.CALIBRATED if alike else Source.ROOFLINE)

    def _bare_seconds(self, one: Variant | Measurement) -> float:
        """Return the roofline time of a token, or of a text for an embedding model."""
        read = self._read_seconds(one)
        return max(read, self._text_seconds(one)) if self.task is Task.EMBEDDING else read

    def _text_seconds(self, one: Variant | Measurement) -> float:
        """Return the time of the arithmetic of a text; 0 if the rate is unknown."""
        rate = self.benchmark.matmul_flops_per_second
        if not one.quantization.startswith(FLOATS):
            rate = self.benchmark.int8_operations_per_second or rate
        return 2 * PROMPT_TOKENS * one.parameters / rate if rate else 0.0

    def _read_seconds(self, one: Variant | Measurement) -> float:
        """Return the time to read a token's weights, or the whole files if these are unknown."""
        read = one.decode_bytes or {one.quantization: max(one.size_bytes, 1)}
        rates = {kind: weight_rate(self.benchmark, kind) for kind in read}
        if not all(rates.values()):
            return 0.0
        return sum(count / rates[kind] for kind, count in read.items())

    def _token_seconds(self, variant: Variant, alike: Sequence[Measurement]) -> float:
        bare = self._bare_seconds(variant)
        if not bare or not alike:
            return bare
        weights = [_likeness(one.size_bytes, variant.size_bytes) for one in alike]
        bares = [self._bare_seconds(one) for one in alike]
        taken = [1 / one.tokens_per_second for one in alike]
        units = [_units(one.matrices) for one in alike]
        slowness, constant = _fit(bares, units, taken, weights)
        same = [
            (weight, math.log(actual / (slowness * of_bytes + constant * unit)))
            for one, weight, of_bytes, unit, actual in zip(
                alike, weights, bares, units, taken, strict=True
            )
            if one.quantization == variant.quantization
        ]
        share = sum(weight for weight, _ in same)
        residual = sum(weight * error for weight, error in same) / (share + RESIDUAL_PULL)
        return (slowness * bare + constant * _units(variant.matrices)) * math.exp(residual)

    def _ttft_seconds(
        self, variant: Variant, token_seconds: float, alike: Sequence[Measurement]
    ) -> float | None:
        flops = self.benchmark.matmul_flops_per_second
        if not flops or not variant.parameters or self.task is not Task.TEXT_GENERATION:
            return None
        work = 2 * PROMPT_TOKENS / flops
        ratios = [
            one.ttft_seconds / (work * one.parameters)
            for one in alike
            if one.ttft_seconds > 0 and one.parameters
        ]
        if ratios:
            return work * variant.parameters * median(ratios)
        # Prefill reads all weights at least once, as decoding a token does.
        return max(work * variant.parameters, token_seconds)


def weight_rate(benchmark: MicroBenchmark, quantization: str) -> float:
    """Return the bytes per second of the kernel whose name is the longest prefix of the type.

    The memory rate if no kernel matches.
    """
    fitting = [name for name in benchmark.weight_bytes_per_second if quantization.startswith(name)]
    if not fitting:
        return benchmark.memory_bytes_per_second
    return benchmark.weight_bytes_per_second[max(fitting, key=len)]


def _likeness(size: int, other: int) -> float:
    """Weigh a measurement by size: 1 for the same size, 1/2 for twice or half of it.

    Models of very different sizes profit differently from caches.
    """
    return 1 / (1 + abs(math.log2(max(size, 1) / max(other, 1))))


def _units(matrices: int) -> float:
    """Return the constant per token in units of a model whose matrices are unknown."""
    return (matrices + CONSTANT_MATRICES) / UNIT_MATRICES if matrices else 1.0


def _fit(
    bares: Sequence[float],
    units: Sequence[float],
    taken: Sequence[float],
    weights: Sequence[float],
) -> tuple[float, float]:
    """Fit slowness s and constant c of taken = s * bare + c * unit by ridge regression.

    Each row is divided by its measured time, so that the squared errors are relative. The 2 x 2
    normal equations are solved by Cramer's rule; the priors are s = 1 and c = TOKEN_SECONDS.
    """
    pull_c = PULL / (TOKEN_SHARE * median(taken)) ** 2
    ss, sc, cc = PULL, 0.0, pull_c
    s_right, c_right = PULL, pull_c * TOKEN_SECONDS
    for bare, unit, actual, weight in zip(bares, units, taken, weights, strict=True):
        by_s, by_c = bare / actual, unit / actual
        ss += weight * by_s * by_s
        sc += weight * by_s * by_c
        cc += weight * by_c * by_c
        s_right += weight * by_s
        c_right += weight * by_c
    determinant = ss * cc - sc * sc
    slowness = (s_right * cc - c_right * sc) / determinant
    constant = (c_right * ss - s_right * sc) / determinant
    if constant < 0:
        # A negative constant has no meaning: fit the slope alone.
        slowness, constant = s_right / ss, 0.0
    return max(slowness, LEAST_SLOWNESS), constant
