"""Compare a variant with its source on the inputs of a trial, each in its own process."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np

from artifact.manifest import Trial
from runtimes.errors import BuildError, VariantFailedError
from runtimes.evaluation.frames import EvaluationJob, Shapes
from runtimes.evaluation.process import evaluating
from runtimes.evaluation.tape import Tape
from runtimes.predictions import Predictions


@dataclass(slots=True)
class SourceTrial:
    """A source's trial: its outputs on a tape, or the reason why it could not run here."""

    tape: Tape
    shapes: Shapes = field(default_factory=dict)
    unmeasured: str = ""
    failure: BuildError | None = None
    values: int = 0
    infinite: int = 0


def try_source(job: EvaluationJob, tape: Tape) -> SourceTrial:
    """Run the source and record its outputs; a failure is part of the result."""
    found = SourceTrial(tape)
    try:
        with evaluating(job, "the source") as live:
            for some in tape.recording(live):
                finite = int(np.isfinite(some.rows).sum())
                found.values += finite
                found.infinite += some.rows.size - finite
            found.shapes, found.unmeasured = live.ended.shapes, live.ended.unmeasured
    except BuildError as error:
        found.failure = error
    return found


def try_variant(job: EvaluationJob, source: SourceTrial, inputs: str) -> Trial:
    """Run the variant and compare its outputs with the source's.

    Raises VariantFailedError if the variant cannot run, has outputs of other shapes, or values that
    are not finite where the source's are. Without outputs of the source, only running is proven.
    """
    try:
        with evaluating(job, "the variant") as live:
            expected = source.tape.replayed() if source.tape.complete else None
            return compare_outputs(expected, live, inputs)
    except VariantFailedError:
        raise
    except BuildError as error:
        raise VariantFailedError(str(error), advice=error.advice) from error


def compare_outputs(
    expected: Iterable[Predictions] | None, found: Iterable[Predictions], inputs: str
) -> Trial:
    """Compute the relative error of the outputs; raise VariantFailedError if they do not match."""
    if expected is None:
        values = sum(int(np.isfinite(some.rows).sum()) for some in found)
        return Trial(inputs=inputs, values=values, relative_error=0.0)
    difference = reference = 0.0
    values = 0
    for number, (left, right) in enumerate(zip_longest(expected, found)):
        if left is None or right is None or left.rows.shape != right.rows.shape:
            shapes = [None if each is None else each.rows.shape for each in (left, right)]
            raise VariantFailedError(
                f"output {number} of the source has the shape {shapes[0]}, the variant's "
                f"{shapes[1]}",
                advice="Use another scheme, or deploy the model as published (source).",
            )
        # Values that are infinite in the source, such as masks, may have any value in the variant.
        finite = np.isfinite(left.rows)
        a, b = left.rows[finite].astype(np.float64), right.rows[finite].astype(np.float64)
        if lost := int((~np.isfinite(b)).sum()):
            raise VariantFailedError(
                f"{lost} of {b.size} values of the variant's output {number} are NaN or infinite "
                "where the source's are finite",
                advice="Use another scheme: values overflow or were lost in this one.",
            )
        # In float64: squares of large float32 values overflow.
        difference += float(np.square(a - b).sum())
        reference += float(np.square(a).sum())
        values += a.size
    error = math.sqrt(difference / reference) if reference else math.sqrt(difference)
    return Trial(inputs=inputs, values=values, relative_error=round(error, 9))
