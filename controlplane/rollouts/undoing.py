"""Undoing: each device that still has the rollout's release gets its previous one again."""

from dataclasses import replace
from datetime import datetime

from controlplane.rollouts.machine import MEMBER_STEPS, MemberState, RolloutState, step
from controlplane.rollouts.plan import Assign, Plan, describe_waiting, enter, is_awaiting_receipt
from controlplane.rollouts.records import DeviceFact, Facts, Member, Rollout, is_reachable


def go_back(plan: Plan, facts: Facts, now: datetime) -> Plan:
    """Assign the previous releases; end the rollout once no device is expected to report."""
    members = dict(plan.rollout.members)
    # A device that this tick would have assigned the release goes back instead.
    planned = {assign.device_id for assign in plan.assignments}
    forward = [m for m in members.values() if m.device_id in planned and not m.sent_back]
    backward = {m.device_id: m for m in [*forward, *revertible(plan.rollout, facts)]}
    assignments = [one for one in plan.assignments if one.device_id not in backward]
    for member in backward.values():
        seen = facts[member.device_id].generation
        assign = Assign(member.device_id, member.previous_release, seen)
        members[member.device_id] = replace(
            member,
            state=step(MEMBER_STEPS, member.state, MemberState.REVERTING),
            generation=assign.generation,
            assigned_at=now,
            reachable_at_assignment=is_reachable(facts, member.device_id),
            sent_back=True,
            bytes_downloaded=0,
            switch_seconds=0.0,
        )
        assignments.append(assign)
    rollout = replace(plan.rollout, members=members)
    if not any(is_awaiting_receipt(rollout, member, facts, now) for member in members.values()):
        reason = describe_waiting(rollout, MemberState.REVERTING, "goes back when it comes back")
        stuck = sum(
            member.sent_back and member.state is MemberState.FAILED for member in members.values()
        )
        parts = (
            rollout.reason,
            reason,
            f"devices that could not go back: {stuck}" if stuck else "",
        )
        rollout = enter(
            rollout, RolloutState.ROLLED_BACK, "; ".join(part for part in parts if part)
        )
    return Plan(rollout, tuple(assignments))


def revertible(rollout: Rollout, facts: Facts) -> list[Member]:
    """Return the devices that should still run this rollout's release and were not sent back.

    A later rollout that undid itself has assigned them the same release again.
    """
    return [
        member
        for member in rollout.members.values()
        if member.generation
        and not member.sent_back
        and member.device_id in facts
        and _still_has(rollout, member, facts[member.device_id])
    ]


def _still_has(rollout: Rollout, member: Member, fact: DeviceFact) -> bool:
    # Its newest assignment is this rollout's. Otherwise a later rollout owns the device, unless
    # that one assigned the same release.
    if fact.generation <= member.generation:
        return fact.generation == member.generation
    return fact.assigned_release == rollout.release
