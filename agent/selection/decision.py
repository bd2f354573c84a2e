"""The decision on a slot's variant: buckets, figures and reasons (selection.proto as plain data).

A decision is immutable: each measurement returns a new one.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

from agent.selection.figures import Figures, missed_limits
from agent.selection.speed_prediction import Source
from artifact.manifest import Objective
from artifact.sizes import in_bytes

# Typical relative error of a roofline prediction after correction by measured variants.
UNCERTAINTY: Final = 0.1

Bucket = Literal["chosen", "ranked", "excluded"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One variant. Figures are 0 (joules, TTFT: None) if neither predicted nor measured.

    ``quality`` is text, ``quality_value`` the number for ranking, higher is better. ``source`` is
    the source of the predicted speed. A candidate with a ``doubt``, a limit that it is predicted
    to miss, is tried last. ``context_length`` is 0 for the variant's full context. ``tried`` is
    set after probation.
    """

    variant: str
    runtime: str
    quantization: str
    bucket: Bucket
    reason: str
    predicted_memory_bytes: int
    predicted_tokens_per_second: float = 0.0
    predicted_joules_per_token: float | None = None
    predicted_ttft_seconds: float | None = None
    source: Source = Source.ROOFLINE
    doubt: str = ""
    context_length: int = 0
    tried: bool = False
    measured_memory_bytes: int = 0
    measured_tokens_per_second: float = 0.0
    measured_joules_per_token: float | None = None
    measured_ttft_seconds: float | None = None
    quality: str = ""
    quality_value: float | None = None

    @property
    def computed(self) -> bool:
        """True if the speed comes from the roofline, whose error variants of a runtime share."""
        return self.source in {Source.ROOFLINE, Source.CALIBRATED}


@dataclass(frozen=True, slots=True)
class Decision:
    """Candidates in the order in which to try them, the excluded ones last.

    ``objective`` is the one used: tokens_per_second without a power meter. ``departure`` explains a
    difference from the policy's objective, empty if there is none. ``rate_unit`` is tokens/s for
    text models, inferences/s otherwise. The limits are the policy's, None or 0 if unset.
    """

    slot: str
    model: str
    objective: Objective
    memory_budget_bytes: int
    min_tokens_per_second: float
    max_candidates: int
    candidates: tuple[Candidate, ...]
    reason: str
    chosen_variant: str = ""
    rate_unit: str = "tokens/s"
    departure: str = ""
    max_ttft_seconds: float | None = None
    max_joules_per_token: float | None = None

    def candidate(self, variant: str) -> Candidate:
        """Return the candidate of this name; raise KeyError if it is unknown."""
        for candidate in self.candidates:
            if candidate.variant == variant:
                return candidate
        raise KeyError(variant)

    @property
    def nothing_fits(self) -> bool:
        """True if every variant is excluded."""
        return all(candidate.bucket == "excluded" for candidate in self.candidates)

    def with_measurement(self, variant: str, figures: Figures) -> "Decision":
        """Return the decision after probation measured a variant; the figures may exclude it."""
        reason = f"measured {figures.tokens_per_second:.1f} {self.rate_unit}"
        if not figures.tokens_per_second:
            reason = "passed its checks, speed unmeasured"
        misses = missed_limits(figures, self, self.rate_unit)
        bucket: Bucket = "excluded" if misses else "ranked"
        if figures.memory_bytes > self.memory_budget_bytes:
            bucket = "excluded"
            reason = (
                f"took {in_bytes(figures.memory_bytes)}, "
                f"budget {in_bytes(self.memory_budget_bytes)}"
            )
        elif misses:
            reason = f"measured {'; '.join(misses)}"
        return self._with(
            replace(
                self.candidate(variant),
                bucket=bucket,
                reason=reason,
                tried=True,
                **figures.named("measured"),
            )
        )

    def with_failure(self, variant: str, reason: str) -> "Decision":
        """Return the decision after a variant failed to load or to pass its checks."""
        failed = replace(self.candidate(variant), bucket="excluded", reason=reason, tried=True)
        return self._with(failed)

    def next_candidate(self) -> str | None:
        """Return the variant to try next, or None if the measurements decide.

        The first candidate is always tried. Another is tried while none was good enough, or if its
        prediction exceeds the best measurement. Roofline predictions are corrected by the ratio of
        measured to predicted speed of the runtime's other variants, plus UNCERTAINTY in favour of
        the untried variant.
        """
        # In the order of the ranking, so the first that qualifies is the most promising.
        waiting = [c for c in self.candidates if c.bucket == "ranked" and not c.tried]
        if sum(c.tried for c in self.candidates) >= self.max_candidates:
            return None
        best = self._best()
        for candidate in waiting:
            if best is not None and candidate.doubt:
                continue
            if best is None or self._expected(candidate, best) > self._achieved(best):
                return candidate.variant
        return None

    def conclude(self) -> "Decision":
        """Return the decision with the best measured variant chosen, if one was good enough."""
        best = self._best()
        if best is None:
            return replace(self, chosen_variant="", reason="no variant fits and passes")
        tried = sum(candidate.tried for candidate in self.candidates)
        return replace(
            self._with(replace(best, bucket="chosen")),
            chosen_variant=best.variant,
            reason=f"{best.reason}; best by {self.objective.value} of {tried} tried,"
            f" {len(self.candidates)} in the release{self.departure}",
        )

    def _with(self, changed: Candidate) -> "Decision":
        return replace(
            self,
            candidates=tuple(
                changed if candidate.variant == changed.variant else candidate
                for candidate in self.candidates
            ),
        )

    def _best(self) -> Candidate | None:
        good = [c for c in self.candidates if c.tried and c.bucket != "excluded"]
        # Ties in the objective (equal quality, equal memory) go to the faster one.
        return max(
            good, key=lambda c: (self._achieved(c), c.measured_tokens_per_second), default=None
        )

    def _achieved(self, candidate: Candidate) -> float:
        """Return a measured candidate's score by the objective; higher is better."""
        match self.objective:
            case Objective.QUALITY:
                return _or_minus_infinity(candidate.quality_value)
            case Objective.MEMORY:
                return -candidate.measured_memory_bytes
            case Objective.TOKENS_PER_JOULE if self._all_metered():
                return 1 / (candidate.measured_joules_per_token or 1)
            case _:
                return candidate.measured_tokens_per_second

    def _expected(self, candidate: Candidate, best: Candidate) -> float:
        """Return an untried candidate's expected score, on the scale of ``_achieved``."""
        speed = candidate.predicted_tokens_per_second * self._correction(candidate)
        match self.objective:
            case Objective.QUALITY:
                return _or_minus_infinity(candidate.quality_value)
            case Objective.MEMORY:
                return -candidate.predicted_memory_bytes
            case Objective.TOKENS_PER_JOULE if self._all_metered():
                if candidate.predicted_joules_per_token:
                    return 1 / candidate.predicted_joules_per_token
                # Assume the best candidate's power: energy per token scales with time per token.
                return self._achieved(best) * speed / best.measured_tokens_per_second
            case _:
                return speed

    def _correction(self, candidate: Candidate) -> float:
        if not candidate.computed:
            return 1.0
        ratios = [
            other.measured_tokens_per_second / other.predicted_tokens_per_second
            for other in self.candidates
            if other.runtime == candidate.runtime
            and other.measured_tokens_per_second > 0
            and other.predicted_tokens_per_second > 0
        ]
        return (1 + UNCERTAINTY) * (sum(ratios) / len(ratios) if ratios else 1.0)

    def _all_metered(self) -> bool:
        measured = [c for c in self.candidates if c.measured_tokens_per_second > 0]
        return bool(measured) and all(each.measured_joules_per_token for each in measured)


def _or_minus_infinity(value: float | None) -> float:
    return float("-inf") if value is None else value
