"""How fast a variant will run here, and what it will cost.

The variant's own measurement on this box comes first, then those of its hardware class, then a
roofline (Williams, Waterman, Patterson, CACM 2009). Decoding a token reads every weight once, so it
takes the weights' bytes over the rate at which this box reads and multiplies weights of that kind,
and something per token. Both are fitted to what this box measured of other variants: least squares
of the relative errors, drawn towards the bare roofline (ridge), so that one measurement helps and
many decide. What is left is told apart by quantization. Prompt processing is bound by arithmetic:
two operations per weight and token. So is an embedding, where the rate counts texts: one takes the
arithmetic of a whole prompt, and reads every weight at least once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Final

from agent.selection.measurement import Measurement, Prior
from artifact.device_facts import MicroBenchmark
from artifact.manifest import Task, Variant

# Per token, beside the weights: sampling, synchronising threads, the trip between processes.
TOKEN_SECONDS: Final = 50e-6
# How strongly the fit holds to the roofline: as much as this many measurements would, if it were
# twice as slow, or spent this share of a measured token's time beside the weights.
PULL: Final = 0.1
TOKEN_SHARE: Final = 0.7
# What a token costs beside its weights grows with the matrices, and a little is there in any case:
# as much as this many cost. It is told in units of a model of a hundred of both.
CONSTANT_MATRICES: Final = 25
UNIT_MATRICES: Final = 100
# Measured rates fall short of the roofline, or pass it by what the caches give.
LEAST_SLOWNESS: Final = 0.2
# One measurement of the same quantization decides two thirds of what the fit left over.
RESIDUAL_PULL: Final = 0.5
# Tokens of the prompt that probation measures with, and of the text that it embeds, about: of the
# usual tens of thousands in a vocabulary. In smaller ones the same text has more.
PROMPT_TOKENS: Final = 16
# How the names of weights begin that are multiplied as they are; all others are as 8-bit numbers.
FLOATS: Final = ("f", "bf")


class Source(StrEnum):
    """Where a prediction comes from, best first."""

    MEASURED_HERE = "measured here before"
    HARDWARE_CLASS = "same hardware class"
    CALIBRATED = "calibrated roofline"
    ROOFLINE = "roofline"


@dataclass(frozen=True, slots=True)
class Prediction:
    """Figures are 0 (joules and TTFT: None) where nothing tells them.

    Where no text is generated, a token is one inference.
    """

    tokens_per_second: float
    source: Source
    joules_per_token: float | None = None
    ttft_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Predictor:
    """Predicts for one model on one box, from all that is known."""

    model: str
    task: Task
    benchmark: MicroBenchmark
    measured: Sequence[Measurement] = ()
    priors: Mapping[str, Prior] | None = None

    def predict(self, variant: Variant) -> Prediction:
        """Of one variant of the model."""
        for one in self.measured:
            if one.is_of(self.model, variant.name):
                return Prediction(
                    one.tokens_per_second,
                    Source.MEASURED_HERE,
                    one.joules_per_token,
                    one.ttft_seconds,
                )
        prior = (self.priors or {}).get(variant.name)
        if prior is not None:
            return Prediction(
                prior.tokens_per_second, Source.HARDWARE_CLASS, prior.joules_per_token
            )
        alike = [
            one
            for one in self.measured
            if (one.runtime, one.task) == (variant.runtime, self.task) and one.tokens_per_second > 0
        ]
        seconds = self._token_seconds(variant, alike)
        watts = [
            one.joules_per_token * one.tokens_per_second for one in alike if one.joules_per_token
        ]
        return Prediction(
            1 / seconds if seconds else 0.0,
            Source.CALIBRATED if alike else Source.ROOFLINE,
            median(watts) * seconds if watts and seconds else None,
            self._ttft_seconds(variant, seconds, alike),
        )

    def _bare_seconds(self, one: Variant | Measurement) -> float:
        """Of a token; of an embedding model, of a text."""
        read = self._read_seconds(one)
        return max(read, self._text_seconds(one)) if self.task is Task.EMBEDDING else read

    def _text_seconds(self, one: Variant | Measurement) -> float:
        """Of the arithmetic of a text; 0 where nothing tells."""
        rate = self.benchmark.matmul_flops_per_second
        if not one.quantization.startswith(FLOATS):
            rate = self.benchmark.int8_operations_per_second or rate
        return 2 * PROMPT_TOKENS * one.parameters / rate if rate else 0.0

    def _read_seconds(self, one: Variant | Measurement) -> float:
        """Of reading the weights that a token needs; where that is unknown, all of the files."""
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
        left = sum(weight * error for weight, error in same) / (share + RESIDUAL_PULL)
        return (slowness * bare + constant * _units(variant.matrices)) * math.exp(left)

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
        # A pass reads all weights at least once.
        return max(work * variant.parameters, token_seconds)


def weight_rate(benchmark: MicroBenchmark, quantization: str) -> float:
    """Bytes of such weights per second: of the kernel of the longest name that it begins with."""
    fitting = [name for name in benchmark.weight_bytes_per_second if quantization.startswith(name)]
    if not fitting:
        return benchmark.memory_bytes_per_second
    return benchmark.weight_bytes_per_second[max(fitting, key=len)]


def _likeness(size: int, other: int) -> float:
    """1 for the same size, 1/2 for twice or half of it: caches serve small models otherwise."""
    return 1 / (1 + abs(math.log2(max(size, 1) / max(other, 1))))


def _units(matrices: int) -> float:
    """What a token costs beside its weights, of an unknown model's cost."""
    return (matrices + CONSTANT_MATRICES) / UNIT_MATRICES if matrices else 1.0


def _fit(
    bares: Sequence[float],
    units: Sequence[float],
    taken: Sequence[float],
    weights: Sequence[float],
) -> tuple[float, float]:
    """Slowness s and constant c of taken = s * bare + c * unit, by ridge regression."""
    pull_c = PULL / (TOKEN_SHARE * median(taken)) ** 2
    ss, sc, cc = PULL, 0.0, pull_c
    s_right, c_right = PULL * 1.0, pull_c * TOKEN_SECONDS
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
        # Only the slope is left, and that one by itself.
        slowness, constant = s_right / ss, 0.0
    return max(slowness, LEAST_SLOWNESS), constant
