"""What one tick decides, and what going forward and undoing have in common."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from controlplane.rollouts.machine import ROLLOUT_STEPS, MemberState, RolloutState, step
from controlplane.rollouts.records import Facts, Member, Rollout, is_reachable


@dataclass(frozen=True, slots=True)
class Assign:
    """Give a device a release ("" for none) under the next generation after ``seen``."""

    device_id: str
    release: str
    seen_generation: int

    @property
    def generation(self) -> int:
        return self.seen_generation + 1


@dataclass(frozen=True, slots=True)
class Plan:
    """The rollout as it shall be, and what devices shall be told in the same transaction."""

    rollout: Rollout
    assignments: tuple[Assign, ...] = ()


def enter(rollout: Rollout, state: RolloutState, reason: str = "") -> Rollout:
    """The rollout in its next state; as ``step``, raises for one that cannot follow."""
    return replace(rollout, state=step(ROLLOUT_STEPS, rollout.state, state), reason=reason)


def holds(rollout: Rollout, member: Member, facts: Facts, now: datetime) -> bool:
    """It was told something and is expected to answer: an offline device is not."""
    if member.state not in {MemberState.ASSIGNED, MemberState.REVERTING}:
        return False
    if member.assigned_at is None or now - member.assigned_at >= silence(rollout):
        return False
    return member.reachable_at_assignment or is_reachable(facts, member.device_id)


def silence(rollout: Rollout) -> timedelta:
    """How long a device may say nothing before nobody waits for it."""
    return timedelta(seconds=rollout.strategy.silent_timeout_seconds)


def stragglers(rollout: Rollout, state: MemberState, what: str) -> str:
    """A sentence on the devices still in ``state``; empty when there are none."""
    count = sum(member.state is state for member in rollout.members.values())
    if not count:
        return ""
    return f"{count} device{'s have' if count > 1 else ' has'} not reported; each {what}"
