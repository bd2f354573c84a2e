"""The result of one tick, and the rules that going forward and undoing share."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from controlplane.rollouts.machine import ROLLOUT_STEPS, MemberState, RolloutState, step
from controlplane.rollouts.records import Facts, Member, Rollout, is_reachable


@dataclass(frozen=True, slots=True)
class Assign:
    """Assign a release ("" for none) to a device under the next generation after ``seen``."""

    device_id: str
    release: str
    seen_generation: int

    @property
    def generation(self) -> int:
        return self.seen_generation + 1


@dataclass(frozen=True, slots=True)
class Plan:
    """The rollout's next value, and the assignments to make in the same transaction."""

    rollout: Rollout
    assignments: tuple[Assign, ...] = ()


def enter(rollout: Rollout, state: RolloutState, reason: str = "") -> Rollout:
    """Return the rollout in its next state; raises like ``step`` if the table forbids it."""
    return replace(rollout, state=step(ROLLOUT_STEPS, rollout.state, state), reason=reason)


def is_awaiting_receipt(rollout: Rollout, member: Member, facts: Facts, now: datetime) -> bool:
    """Return True if the device has an assignment and is expected to report on it."""
    if member.state not in {MemberState.ASSIGNED, MemberState.REVERTING}:
        return False
    if member.assigned_at is None or now - member.assigned_at >= silent_timeout(rollout):
        return False
    return member.reachable_at_assignment or is_reachable(facts, member.device_id)


def silent_timeout(rollout: Rollout) -> timedelta:
    """Return the time without a report after which the rollout stops waiting for a device."""
    return timedelta(seconds=rollout.strategy.silent_timeout_seconds)


def describe_waiting(rollout: Rollout, state: MemberState, what: str) -> str:
    """Describe the devices still in ``state`` in one sentence; empty if there are none."""
    count = sum(member.state is state for member in rollout.members.values())
    if not count:
        return ""
    return f"{count} device{'s have' if count > 1 else ' has'} not reported; each {what}"
