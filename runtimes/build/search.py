"""Try variants against goals, in the order that reaches the goals soonest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from artifact.manifest import Variant
from runtimes.base import Scheme
from runtimes.build.goals import Goals, miss_of_quality, miss_of_size
from runtimes.build.published import SOURCE, source_bytes
from runtimes.build.request import (
    Attempt,
    AttemptOutcome,
    BuildRequest,
    GoalsMissedError,
    VariantRequest,
)
from runtimes.build.source import Source
from runtimes.build.variants import VariantMaker
from runtimes.errors import BuildError, QuantizeError, VariantFailedError

# Predicted sizes are rounded: a candidate is skipped only if it is clearly too large.
_PREDICTION_ERROR = 0.05


@dataclass(frozen=True, slots=True)
class VariantCandidate:
    """A variant to try, and the source to make it from."""

    request: VariantRequest
    source: Source


def check_search(request: BuildRequest) -> None:
    """Raise BuildError if the goals set no limit, or cannot be measured."""
    goals = request.goals
    if goals is None:
        if request.search:
            raise BuildError(
                "a search needs goals, and none were given",
                advice="Give max-degradation, max-size or max-memory.",
            )
        return
    if not (goals.max_degradation or goals.max_size_bytes or goals.max_memory_bytes):
        raise BuildError("the goals set no limit", advice="Give at least one limit.")
    if request.search and goals.smallest_first and not goals.max_degradation:
        raise BuildError(
            "a search for the smallest variant needs a limit of quality, and has none",
            advice="Give max-degradation, or prioritize quality.",
        )
    if request.evaluation is None and (goals.max_degradation or request.compare):
        raise BuildError(
            "comparing variants needs evaluation data, and none were given",
            advice="Give a text, or an .npz with labels.",
        )


def all_schemes(sources: Sequence[Source], request: BuildRequest) -> Iterator[VariantCandidate]:
    """Yield a candidate for each scheme of each source's runtime, calibrated where that applies."""
    for source in sources:
        quantizer = source.runtime.quantizer()
        if source.inspection.quantization not in quantizer.schemes:
            yield VariantCandidate(VariantRequest(SOURCE, SOURCE, source.runtime.name), source)
        for name in quantizer.schemes:
            calibration = request.calibration if quantizer.calibrates(name) else None
            how = Scheme(name, calibration=calibration)
            yield VariantCandidate(VariantRequest(name, how, source.runtime.name), source)


class Search:
    """Loop over candidates that records the outcome of each."""

    def __init__(self, maker: VariantMaker, request: BuildRequest, *, compares: bool) -> None:
        """Compare each variant with its source on the evaluation data if ``compares``."""
        self._maker = maker
        self._request = request
        self._compares = compares
        self._goals = request.goals or Goals()
        self.attempts: list[Attempt] = []
        self.errors: list[BuildError | QuantizeError] = []

    def run(self, candidates: Sequence[VariantCandidate]) -> list[Variant]:
        """Return the variants that meet the goals; with ``search``, the first per source."""
        kept: list[Variant] = []
        done: dict[str, str] = {}
        for candidate in self._in_order(candidates) if self._request.search else candidates:
            path = str(candidate.source.path)
            if path in done:
                self._note(
                    candidate, AttemptOutcome.NOT_TRIED, f"{done[path]} meets the goals already"
                )
                continue
            variant = self._try(candidate)
            if variant is not None:
                kept.append(variant)
                if self._request.search:
                    done[path] = variant.name
        return kept

    def failure(self) -> BuildError | QuantizeError:
        """Return the error for a run that kept no variant: the only one, or a summary."""
        if self.errors and len(self.attempts) == 1:
            return self.errors[0]
        return GoalsMissedError(tuple(self.attempts))

    def _in_order(self, candidates: Sequence[VariantCandidate]) -> list[VariantCandidate]:
        """Sort each source's candidates by size, from the end at which the goals start."""
        ordered: list[VariantCandidate] = []
        for source in dict.fromkeys(str(candidate.source.path) for candidate in candidates):
            of_source = [one for one in candidates if str(one.source.path) == source]
            sizes = [self._predicted_size(one) for one in of_source]
            # One unknown size makes sizes incomparable: schemes are listed from large to small.
            if all(sizes):
                by_size = sorted(zip(sizes, of_source, strict=True), key=lambda pair: -pair[0])
                of_source = [one for _, one in by_size]
            else:
                schemes = (SOURCE, *self._maker.quantizer(of_source[0].source).schemes)
                of_source.sort(key=lambda one: schemes.index(one.request.how.name))
            ordered += reversed(of_source) if self._goals.smallest_first else of_source
        return ordered

    def _predicted_size(self, candidate: VariantCandidate) -> int:
        """Return predicted bytes, 0 if unknown.

        A scheme that does not apply counts as one byte: trying it records the reason.
        """
        if candidate.request.how.name == SOURCE:
            return source_bytes(candidate.source)
        quantizer = self._maker.quantizer(candidate.source)
        try:
            return quantizer.predict_size(candidate.source.path, candidate.request.how)
        except QuantizeError:
            return 1

    def _try(self, candidate: VariantCandidate) -> Variant | None:
        goals, maker = self._goals, self._maker
        predicted = self._predicted_size(candidate) * (1 - _PREDICTION_ERROR)
        if missed := miss_of_size(goals, int(predicted)):
            self._note(candidate, AttemptOutcome.MISSED, f"about {missed}")
            return None
        try:
            variant = maker.make(candidate.request, candidate.source)
        except QuantizeError as error:
            # The scheme does not apply to this model; the next candidate may.
            maker.drop(candidate.request.name)
            self.errors.append(error)
            self._note(candidate, AttemptOutcome.REFUSED, str(error))
            return None
        missed = miss_of_size(goals, variant.size_bytes, variant.memory_bytes)
        if not missed:
            try:
                variant = maker.tried(candidate.request, variant, candidate.source)
                variant, missed = self._measured(variant, candidate.source)
            except VariantFailedError as error:
                maker.drop(variant.name)
                self.errors.append(error)
                self._note(candidate, AttemptOutcome.FAILED, str(error), variant)
                return None
        if missed:
            maker.drop(variant.name)
            self._note(candidate, AttemptOutcome.MISSED, missed, variant)
            return None
        self._note(candidate, AttemptOutcome.KEPT, "", variant)
        return variant

    def _measured(self, variant: Variant, source: Source) -> tuple[Variant, str]:
        """Return the variant with its measurements, and the goal that it misses or ""."""
        if not self._compares or self._request.evaluation is None:
            return self._maker.measured(variant, source), ""
        found = self._maker.compared(variant, source)
        return found.variant, miss_of_quality(self._goals, found.variant, found.comparison)

    def _note(
        self,
        candidate: VariantCandidate,
        outcome: AttemptOutcome,
        reason: str,
        variant: Variant | None = None,
    ) -> None:
        request, runtime = candidate.request, candidate.source.runtime.name
        self.attempts.append(
            Attempt(request.name, runtime, request.how.name, outcome, reason, variant)
        )
