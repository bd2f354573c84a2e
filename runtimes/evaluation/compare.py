"""What a variant has lost against its source: both read the same data, in step."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import zip_longest
from typing import Any, Final

import msgspec
import numpy as np

from artifact.manifest import Divergence, Quality, Task
from runtimes.base import Progress
from runtimes.errors import BuildError, VariantFailedError
from runtimes.evaluation.comparison import Comparison
from runtimes.evaluation.frames import EvaluationJob
from runtimes.evaluation.process import evaluating
from runtimes.evaluation.quality import Evaluation, QualityMeter, classes, refuse_no_numbers
from runtimes.evaluation.tape import Tape
from runtimes.predictions import Predictions

# How far from 1 the values of a row may add up, for it to be one of probabilities.
_ABOUT_ONE: Final = 1e-2
# Under it, a probability is rounding.
_LEAST: Final = 1e-12
# About the least whose exponential is a float.
_LEAST_LOGARITHM: Final = -700.0
_WHAT: Final = "comparing with the source"


def compare(
    source: EvaluationJob,
    variant: EvaluationJob,
    evaluation: Evaluation,
    progress: Progress,
    tape: Tape,
) -> Comparison:
    """Evaluates both; BuildError when they do not read the same, or the source cannot be evaluated.

    VariantFailedError when the variant cannot.

    Of the source the tape tells, once it was recorded.
    """
    progress(_WHAT, 0.0)
    with _said(source, tape) as left, evaluating(variant, "the variant") as right:
        found = compare_predictions(left, _said_by_variant(right), evaluation, progress)
    return replace(found, memory_bytes=right.memory_bytes)


def _said_by_variant(live: Iterable[Predictions]) -> Iterator[Predictions]:
    with _faults_of_variant():
        yield from live


@contextlib.contextmanager
def _faults_of_variant() -> Iterator[None]:
    try:
        yield
    except BuildError as error:
        raise VariantFailedError(str(error), advice=error.advice) from error


@contextlib.contextmanager
def _said(source: EvaluationJob, tape: Tape) -> Iterator[Iterable[Predictions]]:
    if tape.whole:
        yield tape.replayed()
        return
    with evaluating(source, "the source") as live:
        yield tape.recording(live)


def compare_predictions(
    left: Iterable[Predictions],
    right: Iterable[Predictions],
    evaluation: Evaluation,
    progress: Progress,
) -> Comparison:
    """Of what the source says and what the variant says; memory is not known here."""
    loss = _LossOfVectors(evaluation) if evaluation.task is Task.EMBEDDING else _Loss(evaluation)
    for expected, found in zip_longest(left, right):
        if expected is None or found is None or not _read_alike(expected, found):
            raise BuildError(
                "the variant and its source do not read the evaluation data alike",
                advice="Give sources of the same weights and vocabulary.",
            )
        loss.add(expected, found)
        progress(_WHAT, found.done)
    return loss.comparison()


def _read_alike(expected: Predictions, found: Predictions) -> bool:
    return np.array_equal(expected.targets, found.targets) and (
        expected.rows.shape == found.rows.shape
    )


class _Loss:
    """Of what predicts tokens or classes."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._of_source, self._of_variant = QualityMeter(evaluation), QualityMeter(evaluation)
        self._distance = _Distance(evaluation)

    def add(self, expected: Predictions, found: Predictions) -> None:
        self._of_source.add(expected)
        with _faults_of_variant():
            self._of_variant.add(found)
        self._distance.add(expected, found)

    def comparison(self) -> Comparison:
        source_quality = self._of_source.quality()
        with _faults_of_variant():
            quality = self._of_variant.quality()
        return Comparison(quality, source_quality, self._distance.divergence())


class _LossOfVectors:
    """Adds up cosines between vectors of length 1."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self._cosines = 0.0
        self._count = 0

    def add(self, expected: Predictions, found: Predictions) -> None:
        refuse_no_numbers(expected)
        with _faults_of_variant():
            refuse_no_numbers(found)
        self._cosines += float((expected.rows.astype(np.float64) * found.rows).sum())
        self._count += len(expected.targets)

    def comparison(self) -> Comparison:
        quality = Quality(
            metric="cosine_similarity",
            value=round(self._cosines / self._count, 6),
            higher_is_better=True,
            dataset=self._evaluation.dataset,
        )
        return Comparison(quality, msgspec.structs.replace(quality, value=1.0), None)


class _Distance:
    """Adds up Kullback-Leibler divergences and equal tops."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self._nats = 0.0
        self._same = 0
        self._count = 0
        self._columns = 0

    def add(self, expected: Predictions, found: Predictions) -> None:
        self._same += int((classes(expected.rows) == classes(found.rows)).sum())
        self._count += len(expected.targets)
        self._columns = expected.rows.shape[1]
        # Row by row: a large vocabulary in float64 takes megabytes per row.
        for p, q in zip(expected.rows, found.rows, strict=True):
            log_p, log_q = _log_probabilities(p), _log_probabilities(q)
            self._nats += max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum()))

    def divergence(self) -> Divergence:
        # A single column names the class, or is no distribution at all.
        is_distribution = self._columns > 1
        return Divergence(
            same_top=round(self._same / self._count, 6),
            predictions=self._count,
            dataset=self._evaluation.dataset,
            mean_kl=round(self._nats / self._count, 9) if is_distribution else None,
        )


def _log_probabilities(row: Any) -> Any:
    """Of logits, or of what are probabilities already, as some classifiers give them."""
    wide = row.astype(np.float64)
    if wide.min() >= 0 and abs(wide.sum() - 1) < _ABOUT_ONE:
        wide = np.log(np.maximum(wide, _LEAST))
    else:
        # A model may rule a token out, and its logarithm stays a number.
        wide = np.maximum(wide - wide.max(), _LEAST_LOGARITHM)
    return wide - np.log(np.exp(wide).sum())
