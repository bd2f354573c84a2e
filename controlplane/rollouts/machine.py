"""States of a rollout, of a wave and of a member, and every step between them."""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar


class RolloutState(StrEnum):
    DRAFT = "draft"
    AWAITING_APPROVAL = "awaiting_approval"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"

    @property
    def finished(self) -> bool:
        """True if only an operator's rollback can still change the rollout."""
        return self in FINISHED


class WaveState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    SOAKING = "soaking"
    EVALUATING = "evaluating"
    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"


class MemberState(StrEnum):
    """State of a device in a rollout."""

    PENDING = "pending"
    ASSIGNED = "assigned"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REVERTING = "reverting"
    REVERTED = "reverted"


FINISHED = frozenset((RolloutState.SUCCEEDED, RolloutState.ROLLED_BACK, RolloutState.ABORTED))

# An operator may undo a finished rollout, so only rolled_back is a final state.
ROLLOUT_STEPS: Mapping[RolloutState, frozenset[RolloutState]] = {
    RolloutState.DRAFT: frozenset(
        (RolloutState.AWAITING_APPROVAL, RolloutState.SCHEDULED, RolloutState.ABORTED)
    ),
    RolloutState.AWAITING_APPROVAL: frozenset((RolloutState.SCHEDULED, RolloutState.ABORTED)),
    RolloutState.SCHEDULED: frozenset((RolloutState.RUNNING, RolloutState.ABORTED)),
    RolloutState.RUNNING: frozenset(
        (
            RolloutState.PAUSED,
            RolloutState.SUCCEEDED,
            RolloutState.ROLLING_BACK,
            RolloutState.ABORTED,
        )
    ),
    RolloutState.PAUSED: frozenset(
        (RolloutState.RUNNING, RolloutState.ROLLING_BACK, RolloutState.ABORTED)
    ),
    RolloutState.SUCCEEDED: frozenset((RolloutState.ROLLING_BACK,)),
    RolloutState.ABORTED: frozenset((RolloutState.ROLLING_BACK,)),
    RolloutState.ROLLING_BACK: frozenset((RolloutState.ROLLED_BACK,)),
    RolloutState.ROLLED_BACK: frozenset(),
}

# failed -> running and inconclusive -> passed are an operator's resume. An operator who aborts or
# rolls back leaves the wave that was in progress inconclusive.
WAVE_STEPS: Mapping[WaveState, frozenset[WaveState]] = {
    WaveState.PENDING: frozenset((WaveState.RUNNING,)),
    WaveState.RUNNING: frozenset((WaveState.SOAKING, WaveState.FAILED, WaveState.INCONCLUSIVE)),
    WaveState.SOAKING: frozenset((WaveState.EVALUATING, WaveState.FAILED, WaveState.INCONCLUSIVE)),
    WaveState.EVALUATING: frozenset((WaveState.PASSED, WaveState.FAILED, WaveState.INCONCLUSIVE)),
    WaveState.PASSED: frozenset(),
    WaveState.FAILED: frozenset((WaveState.RUNNING,)),
    WaveState.INCONCLUSIVE: frozenset((WaveState.PASSED,)),
}

# Receipts settle assigned and reverting; a device that could not go back ends failed. After an
# interrupted update it is pending again or, on its way back, failed and sent once more.
MEMBER_STEPS: Mapping[MemberState, frozenset[MemberState]] = {
    MemberState.PENDING: frozenset((MemberState.ASSIGNED, MemberState.REVERTING)),
    MemberState.ASSIGNED: frozenset(
        (
            MemberState.SUCCEEDED,
            MemberState.FAILED,
            MemberState.REVERTING,
            MemberState.PENDING,
        )
    ),
    MemberState.SUCCEEDED: frozenset((MemberState.REVERTING,)),
    MemberState.FAILED: frozenset((MemberState.REVERTING,)),
    MemberState.REVERTING: frozenset((MemberState.REVERTED, MemberState.FAILED)),
    MemberState.REVERTED: frozenset(),
}

State = TypeVar("State", bound=StrEnum)


def step(steps: Mapping[State, frozenset[State]], before: State, after: State) -> State:
    """Return ``after`` if the table allows the step; otherwise raise AssertionError."""
    if after not in steps[before]:
        raise AssertionError(f"{type(before).__name__}: no step from {before} to {after}")
    return after
