import pytest

from controlplane.rollouts.gates import (
    Counts,
    GateOutcome,
    Verdict,
    early_failure,
    judge_failures,
    worst,
)
from controlplane.rollouts.strategy import FailureGate


def counts(targeted: int, failed: int, succeeded: int, acknowledged: int = 0) -> Counts:
    return Counts(targeted, targeted, failed + succeeded, succeeded, failed, acknowledged)


@pytest.mark.parametrize(
    ("gate", "numbers", "outcome"),
    [
        (FailureGate(), counts(10, 0, 10), "passed"),
        (FailureGate(), counts(10, 1, 9), "passed"),
        (FailureGate(), counts(10, 2, 8), "failed"),
        (FailureGate(), counts(20, 1, 4), "failed"),  # 20 % of those that reported
        (FailureGate(max_failures=0), counts(10, 1, 9), "failed"),
        (FailureGate(max_failures=1), counts(2, 1, 1), "passed"),
        (FailureGate(max_failures=5, max_failure_percent=10), counts(10, 2, 8), "failed"),
        (FailureGate(min_executed=5), counts(10, 0, 4), "inconclusive"),
        (FailureGate(min_executed=5), counts(10, 0, 5), "passed"),
        (FailureGate(min_executed=5), counts(2, 0, 2), "passed"),
        (FailureGate(), counts(3, 0, 0), "inconclusive"),
        (FailureGate(), counts(0, 0, 0), "passed"),
        (FailureGate(max_failures=0), counts(10, 1, 9, acknowledged=1), "passed"),
        (FailureGate(max_failures=0), counts(10, 2, 8, acknowledged=1), "failed"),
    ],
)
def test_failure_gate_at_the_end_of_a_wave(
    gate: FailureGate, numbers: Counts, outcome: str
) -> None:
    assert judge_failures(gate, numbers).outcome == outcome


@pytest.mark.parametrize(
    ("gate", "numbers", "fails"),
    [
        # A failed first report must not stop a hundred devices, ...
        (FailureGate(), counts(100, 1, 0), False),
        # ... but eleven failures exceed the limit, whatever the rest report.
        (FailureGate(), counts(100, 11, 0), True),
        (FailureGate(max_failures=0), counts(100, 1, 0), True),
        (FailureGate(max_failures=0), counts(100, 1, 0, acknowledged=1), False),
        (FailureGate(), counts(1, 1, 0), True),
    ],
)
def test_a_wave_fails_early_only_when_nothing_can_mend_it(
    gate: FailureGate, numbers: Counts, fails: bool
) -> None:
    assert (early_failure(gate, numbers) is not None) is fails


def test_worst_wins() -> None:
    passed, unsure, failed = (Verdict("g", outcome, "") for outcome in GateOutcome)
    assert worst([]) is GateOutcome.PASSED
    assert worst([passed, unsure]) is GateOutcome.INCONCLUSIVE
    assert worst([failed, unsure, passed]) is GateOutcome.FAILED


def test_counts_begin_at_zero() -> None:
    assert Counts() == Counts(
        targeted=0, reachable=0, reported=0, succeeded=0, failed=0, acknowledged=0
    )
