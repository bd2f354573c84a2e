"""A decision: every variant with its bucket, its figures, and why (selection.proto as plain data).

A decision is a value: each measurement gives a new one.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

from agent.selection.prediction import Source
from artifact.manifest import Objective
from artifact.sizes import in_bytes

# About how far a computed speed is off once others corrected it.
UNCERTAINTY: Final = 0.1

Bucket = Literal["chosen", "ranked", "excluded"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One variant. Figures are 0 (joules, TTFT: None) where nothing was predicted or measured.

    ``quality`` is in words; ``quality_value`` is the same for ranking, higher being better.
    ``source`` tells where the predicted speed is from. ``doubt`` is a limit that it is predicted to
    miss: it is tried last. ``context_length`` is what it would serve with, when not the whole.
    ``tried`` is set once probation has had it.
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
        """Whether its speed was computed, and so errs as others of its runtime do."""
        return self.source in {Source.ROOFLINE, Source.CALIBRATED}


@dataclass(frozen=True, slots=True)
class Decision:
    """Candidates in the order in which they deserve a try, the excluded ones last.

    ``objective`` is what was really ranked by: tokens_per_second where no meter is. ``rate_unit``
    says what the rates count: tokens/s of a text model, inferences/s of any other. The limits are
    the policy's, None and 0 where it has none. ``departure`` tells what else than the policy's
    objective was ranked by, and why; empty where nothing else was.
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
        """The candidate of this name; KeyError when there is none."""
        for candidate in self.candidates:
            if candidate.variant == variant:
                return candidate
        raise KeyError(variant)

    @property
    def nothing_fits(self) -> bool:
        """Whether every variant is excluded."""
        return all(candidate.bucket == "excluded" for candidate in self.candidates)

    def with_measurement(
        self,
        variant: str,
        *,
        tokens_per_second: float,
        memory_bytes: int,
        ttft_seconds: float | None = None,
        joules_per_token: float | None = None,
    ) -> "Decision":
        """The decision once probation has measured a variant; the figures may exclude it."""
        found = f"measured {tokens_per_second:.1f} {self.rate_unit}"
        misses = self._misses(tokens_per_second, ttft_seconds, joules_per_token)
        bucket: Bucket = "excluded" if misses else "ranked"
        if memory_bytes > self.memory_budget_bytes:
            bucket = "excluded"
            found = f"took {in_bytes(memory_bytes)}, budget {in_bytes(self.memory_budget_bytes)}"
        elif misses:
            found = f"measured {'; '.join(misses)}"
        return self._with(
            replace(
                self.candidate(variant),
                bucket=bucket,
                reason=found,
                tried=True,
                measured_tokens_per_second=tokens_per_second,
                measured_memory_bytes=memory_bytes,
                measured_joules_per_token=joules_per_token,
                measured_ttft_seconds=ttft_seconds,
            )
        )

    def _misses(
        self, tokens_per_second: float, ttft_seconds: float | None, joules_per_token: float | None
    ) -> list[str]:
        return missed_limits(
            tokens_per_second=tokens_per_second,
            ttft_seconds=ttft_seconds,
            joules_per_token=joules_per_token,
            min_tokens_per_second=self.min_tokens_per_second,
            max_ttft_seconds=self.max_ttft_seconds,
            max_joules_per_token=self.max_joules_per_token,
            rate_unit=self.rate_unit,
        )

    def with_failure(self, variant: str, reason: str) -> "Decision":
        """The decision once a variant failed to load or to pass its checks."""
        failed = replace(self.candidate(variant), bucket="excluded", reason=reason, tried=True)
        return self._with(failed)

    def next_candidate(self) -> str | None:
        """The variant to prove next, or None when what was measured settles it.

        The first is always tried. Another is tried while none was good enough, or when its
        prediction beats the best measurement. What was computed is first corrected by what
        measuring made of it for other variants of the same runtime, and may be as wrong as
        UNCERTAINTY to its own disadvantage.
        """
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
        """The decision with the best measured variant chosen; none when none was good enough."""
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
        return max(good, key=self._achieved, default=None)

    def _achieved(self, candidate: Candidate) -> float:
        """What a measured candidate reached, by the objective; more is better."""
        match self.objective:
            case Objective.QUALITY:
                return _or_least(candidate.quality_value)
            case Objective.MEMORY:
                return -candidate.measured_memory_bytes
            case Objective.TOKENS_PER_JOULE if self._all_metered():
                return 1 / (candidate.measured_joules_per_token or 1)
            case _:
                return candidate.measured_tokens_per_second

    def _expected(self, candidate: Candidate, best: Candidate) -> float:
        """What an untried candidate may reach, on the scale of ``_achieved``."""
        speed = candidate.predicted_tokens_per_second * self._correction(candidate)
        match self.objective:
            case Objective.QUALITY:
                return _or_least(candidate.quality_value)
            case Objective.MEMORY:
                return -candidate.predicted_memory_bytes
            case Objective.TOKENS_PER_JOULE if self._all_metered():
                if candidate.predicted_joules_per_token:
                    return 1 / candidate.predicted_joules_per_token
                # The same power for less time per token.
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
        return all(candidate.measured_joules_per_token for candidate in measured)


def missed_limits(
    *,
    tokens_per_second: float,
    ttft_seconds: float | None,
    joules_per_token: float | None,
    min_tokens_per_second: float,
    max_ttft_seconds: float | None,
    max_joules_per_token: float | None,
    rate_unit: str,
) -> list[str]:
    """The policy's limits that these figures miss, in words; an unknown figure misses none."""
    misses = []
    if 0 < tokens_per_second < min_tokens_per_second:
        misses.append(f"{tokens_per_second:.1f} {rate_unit}, {min_tokens_per_second:g} asked")
    if max_ttft_seconds is not None and ttft_seconds and ttft_seconds > max_ttft_seconds:
        misses.append(f"{ttft_seconds:.3g} s to the first token, {max_ttft_seconds:g} allowed")
    if max_joules_per_token and joules_per_token and joules_per_token > max_joules_per_token:
        misses.append(f"{joules_per_token:.3g} J/token, {max_joules_per_token:g} allowed")
    return misses


def _or_least(value: float | None) -> float:
    return float("-inf") if value is None else value
