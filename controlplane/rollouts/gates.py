"""What counts as worse. A verdict is passed, inconclusive or failed, and the worst one wins."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from controlplane.rollouts.strategy import FailureGate


class Outcome(StrEnum):
    PASSED = "passed"
    INCONCLUSIVE = "inconclusive"
    FAILED = "failed"


_BADNESS = (Outcome.PASSED, Outcome.INCONCLUSIVE, Outcome.FAILED)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one gate says of one wave, and why."""

    gate: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True, slots=True)
class Counts:
    """A wave in numbers. ``acknowledged`` failures were accepted by an operator's resume."""

    targeted: int = 0
    reachable: int = 0
    reported: int = 0
    succeeded: int = 0
    failed: int = 0
    acknowledged: int = 0

    @property
    def counted_failures(self) -> int:
        return max(self.failed - self.acknowledged, 0)


def worst(verdicts: Iterable[Verdict]) -> Outcome:
    """The worst one: passed < inconclusive < failed; passed when there are none."""
    return max(
        (verdict.outcome for verdict in verdicts), key=_BADNESS.index, default=Outcome.PASSED
    )


def required_reports(gate: FailureGate, counts: Counts) -> int:
    """How many devices must have reported before the wave can be judged."""
    return min(gate.min_executed, counts.targeted)


def early_failure(gate: FailureGate, counts: Counts) -> Verdict | None:
    """A failure that nothing still to come can mend, so the wave need not be finished."""
    failed = counts.counted_failures
    if gate.max_failures is not None and failed > gate.max_failures:
        return Verdict(
            "failure", Outcome.FAILED, f"failed devices: {failed}, allowed: {gate.max_failures}"
        )
    limit = gate.percent_limit
    if limit is not None and failed * 100 > limit * counts.targeted:
        return Verdict(
            "failure",
            Outcome.FAILED,
            f"{failed} of {counts.targeted} devices failed, more than {limit:g} %",
        )
    return None


def judge_failures(gate: FailureGate, counts: Counts) -> Verdict:
    """The failure gate's word once the wave is over; percentages are of devices that reported."""
    early = early_failure(gate, counts)
    if early is not None:
        return early
    failed, needed = counts.counted_failures, required_reports(gate, counts)
    if counts.reported < needed:
        return Verdict(
            "failure",
            Outcome.INCONCLUSIVE,
            f"{counts.reported} of {counts.targeted} devices reported, fewer than {needed}",
        )
    limit = gate.percent_limit
    if limit is not None and failed * 100 > limit * counts.reported:
        return Verdict(
            "failure",
            Outcome.FAILED,
            f"{failed} of {counts.reported} devices that reported failed, more than {limit:g} %",
        )
    return Verdict(
        "failure", Outcome.PASSED, f"{failed} of {counts.reported} devices that reported failed"
    )
