"""Compare a variant's predictions with its source's on the same data, in step."""

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

# A row is taken for probabilities if its sum is this close to 1.
_SUM_TOLERANCE: Final = 1e-2
# Smaller probabilities are rounding errors.
_MIN_PROBABILITY: Final = 1e-12
# About the smallest number whose exponential is not 0 in float64.
_MIN_LOG_PROBABILITY: Final = -700.0
_STEP_NAME: Final = "comparing with the source"


def compare(
    source: EvaluationJob,
    variant: EvaluationJob,
    evaluation: Evaluation,
    progress: Progress,
    tape: Tape,
) -> Comparison:
    """Evaluate both; once ``tape`` is complete, it replaces evaluating the source.

    Raises BuildError if the source cannot be evaluated or the two tokenize differently, and
    VariantFailedError if the variant cannot be evaluated.
    """
    progress(_STEP_NAME, 0.0)
    with _source_predictions(source, tape) as left, evaluating(variant, "the variant") as right:
        found = compare_predictions(left, _variant_predictions(right), evaluation, progress)
    return replace(found, memory_bytes=right.memory_bytes)


def _variant_predictions(live: Iterable[Predictions]) -> Iterator[Predictions]:
    # Faults of the source pass unchanged: no other variant could be compared with it either.
    with _faults_of_variant():
        yield from live


@contextlib.contextmanager
def _faults_of_variant() -> Iterator[None]:
    """Turn BuildError into VariantFailedError: a search skips those and stops at the others."""
    try:
        yield
    except BuildError as error:
        raise VariantFailedError(str(error), advice=error.advice) from error


@contextlib.contextmanager
def _source_predictions(source: EvaluationJob, tape: Tape) -> Iterator[Iterable[Predictions]]:
    if tape.complete:
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
    """Compare two streams of predictions; the result has no memory figure."""
    loss = _LossOfVectors(evaluation) if evaluation.task is Task.EMBEDDING else _Loss(evaluation)
    # In step, so that one frame of each is in memory; the pipe makes the faster process wait.
    for expected, found in zip_longest(left, right):
        if expected is None or found is None or not _is_comparable(expected, found):
            raise BuildError(
                "the variant and its source read the evaluation data as different tokens or rows",
                advice="Give sources of the same weights and vocabulary.",
            )
        loss.add(expected, found)
        progress(_STEP_NAME, found.done)
    return loss.comparison()


def _is_comparable(expected: Predictions, found: Predictions) -> bool:
    return np.array_equal(expected.targets, found.targets) and (
        expected.rows.shape == found.rows.shape
    )


class _Loss:
    """Loss of models that predict tokens or classes."""

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
    """Mean cosine between unit vectors of source and variant."""

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
    """Mean Kullback-Leibler divergence, and the fraction of equal top predictions."""

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
        # Row by row, because a large vocabulary in float64 takes megabytes per row.
        for p, q in zip(expected.rows, found.rows, strict=True):
            log_p, log_q = _log_probabilities(p), _log_probabilities(q)
            # KL is not negative; rounding may make it so for equal rows.
            self._nats += max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum()))

    def divergence(self) -> Divergence:
        # A single column names the class; it is not a distribution.
        is_distribution = self._columns > 1
        return Divergence(
            same_top=round(self._same / self._count, 6),
            predictions=self._count,
            dataset=self._evaluation.dataset,
            mean_kl=round(self._nats / self._count, 9) if is_distribution else None,
        )


def _log_probabilities(row: Any) -> Any:
    """Return log probabilities of logits, or of probabilities, which some classifiers return."""
    wide = row.astype(np.float64)
    if wide.min() >= 0 and abs(wide.sum() - 1) < _SUM_TOLERANCE:
        wide = np.log(np.maximum(wide, _MIN_PROBABILITY))
    else:
        # Logits of -inf mean "never"; clamped, the divergence stays finite.
        wide = np.maximum(wide - wide.max(), _MIN_LOG_PROBABILITY)
    return wide - np.log(np.exp(wide).sum())
