"""Gates judge a wave: passed, inconclusive or failed; the worst verdict wins."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from controlplane.rollouts.strategy import FailureGate


class GateOutcome(StrEnum):
    PASSED = "passed"
    INCONCLUSIVE = "inconclusive"
    FAILED = "failed"


_BADNESS = (GateOutcome.PASSED, GateOutcome.INCONCLUSIVE, GateOutcome.FAILED)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of one gate for one wave, with its reason."""

    gate: str
    outcome: GateOutcome
    detail: str


@dataclass(frozen=True, slots=True)
class Counts:
    """Device counts of a wave. ``acknowledged`` failures were accepted by an operator's resume."""

    targeted: int = 0
    reachable: int = 0
    reported: int = 0
    succeeded: int = 0
    failed: int = 0
    acknowledged: int = 0

    @property
    def counted_failures(self) -> int:
        return max(self.failed - self.acknowledged, 0)


def worst(verdicts: Iterable[Verdict]) -> GateOutcome:
    """Return the worst outcome: passed < inconclusive < failed; passed without verdicts."""
    return max(
        (verdict.outcome for verdict in verdicts), key=_BADNESS.index, default=GateOutcome.PASSED
    )


def required_reports(gate: FailureGate, counts: Counts) -> int:
    """Return the number of reports that a judgement of the wave needs."""
    return min(gate.min_executed, counts.targeted)


def early_failure(gate: FailureGate, counts: Counts) -> Verdict | None:
    """Return a failure that no outstanding report can mend, so that the wave ends early."""
    failed = counts.counted_failures
    if gate.max_failures is not None and failed > gate.max_failures:
        return Verdict(
            "failure", GateOutcome.FAILED, f"failed devices: {failed}, allowed: {gate.max_failures}"
        )
    limit = gate.percent_limit
    # Of all targeted: even if every other device succeeds, the percentage stays above the limit.
    # Multiplied out, since a division could round a share down to the limit.
    if limit is not None and failed * 100 > limit * counts.targeted:
        return Verdict(
            "failure",
            GateOutcome.FAILED,
            f"{failed} of {counts.targeted} devices failed, more than {limit:g} %",
        )
    return None


def judge_failures(gate: FailureGate, counts: Counts) -> Verdict:
    """Judge a finished wave by its failures; percentages refer to devices that reported."""
    early = early_failure(gate, counts)
    if early is not None:
        return early
    failed, needed = counts.counted_failures, required_reports(gate, counts)
    if counts.reported < needed:
        return Verdict(
            "failure",
            GateOutcome.INCONCLUSIVE,
            f"{counts.reported} of {counts.targeted} devices reported, fewer than {needed}",
        )
    limit = gate.percent_limit
    if limit is not None and failed * 100 > limit * counts.reported:
        return Verdict(
            "failure",
            GateOutcome.FAILED,
            f"{failed} of {counts.reported} devices that reported failed, more than {limit:g} %",
        )
    return Verdict(
        "failure", GateOutcome.PASSED, f"{failed} of {counts.reported} devices that reported failed"
    )
