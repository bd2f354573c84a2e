"""Going forward: each wave is assigned, soaked and judged before the next."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from controlplane.rollouts.gates import (
    Verdict,
    early_failure,
    judge_failures,
    required_reports,
    worst,
)
from controlplane.rollouts.machine import (
    MEMBER_STEPS,
    WAVE_STEPS,
    MemberState,
    RolloutState,
    WaveState,
    step,
)
from controlplane.rollouts.plan import (
    Assign,
    Plan,
    describe_waiting,
    enter,
    is_awaiting_receipt,
    silent_timeout,
)
from controlplane.rollouts.records import Facts, Member, Rollout, Wave, is_reachable
from controlplane.rollouts.strategy import OnFailure


def go_forward(plan: Plan, facts: Facts, now: datetime) -> Plan:
    """Return the next step of a running rollout; interrupted devices are assigned again first."""
    interrupted = _interrupted(plan.rollout, facts)
    if interrupted:
        return _assign(plan, interrupted, facts, now)
    return _run(plan, facts, now)


def current_wave(rollout: Rollout) -> int | None:
    """Return the index of the first wave that has not passed; None if all have."""
    for index, wave in enumerate(rollout.waves):
        # Waves pass in order, so the first that has not is the one in progress.
        if wave.state is not WaveState.PASSED:
            return index
    return None


def _interrupted(rollout: Rollout, facts: Facts) -> list[Member]:
    """Return the devices of any wave that wait for a retry."""
    return [
        member
        for member in rollout.members.values()
        if member.state is MemberState.PENDING and member.retries and _is_active(facts, member)
    ]


def _run(plan: Plan, facts: Facts, now: datetime) -> Plan:
    rollout = plan.rollout
    index = current_wave(rollout)
    if index is None:
        reason = describe_waiting(rollout, MemberState.ASSIGNED, "gets it when it comes back")
        return replace(plan, rollout=enter(rollout, RolloutState.SUCCEEDED, reason))
    wave = rollout.waves[index]
    match wave.state:
        case WaveState.PENDING:
            return replace(plan, rollout=_change(rollout, index, WaveState.RUNNING, started_at=now))
        case WaveState.RUNNING:
            return _run_wave(plan, index, facts, now)
        case WaveState.SOAKING:
            return replace(plan, rollout=_soak(rollout, index, facts, now))
        case WaveState.EVALUATING:
            return replace(plan, rollout=_evaluate(rollout, index, facts))
        case _:
            return replace(plan, rollout=_stop(rollout, wave))


def _run_wave(plan: Plan, index: int, facts: Facts, now: datetime) -> Plan:
    rollout = plan.rollout
    failure = early_failure(rollout.strategy.gates.failure, rollout.counts(index, facts))
    if failure is not None:
        return replace(plan, rollout=_fail(rollout, index, failure))
    chosen = _next_members(rollout, index, facts, now)
    if chosen:
        return _assign(plan, chosen, facts, now)
    if _is_waiting(rollout, index, facts, now):
        return plan
    soak = timedelta(seconds=rollout.strategy.waves[index].soak_seconds)
    # A wave without devices has no device to observe.
    if not rollout.of_wave(index):
        soak = timedelta()
    return replace(plan, rollout=_change(rollout, index, WaveState.SOAKING, soak_until=now + soak))


def _next_members(rollout: Rollout, index: int, facts: Facts, now: datetime) -> list[Member]:
    """Return the pending devices of a wave that may change now.

    Unreachable devices are always included: their assignment waits for them and takes nothing down.
    """
    pending = [
        member
        for member in rollout.of_wave(index)
        if member.state is MemberState.PENDING and _is_active(facts, member)
    ]
    # The bound counts devices of all waves: a late device of an earlier wave is down as well.
    limit = rollout.strategy.max_unavailable
    if limit is None:
        return pending
    away = [member for member in pending if not is_reachable(facts, member.device_id)]
    here = [member for member in pending if is_reachable(facts, member.device_id)]
    changing = sum(
        is_awaiting_receipt(rollout, member, facts, now) for member in rollout.members.values()
    )
    return away + here[: max(limit - changing, 0)]


def _is_active(facts: Facts, member: Member) -> bool:
    return member.device_id in facts and facts[member.device_id].active


def _is_waiting(rollout: Rollout, index: int, facts: Facts, now: datetime) -> bool:
    """Return True while a device may still report, or too few have reported to judge the wave."""
    members = rollout.of_wave(index)
    if any(is_awaiting_receipt(rollout, member, facts, now) for member in members):
        return True
    if any(
        member.state is MemberState.PENDING and is_reachable(facts, member.device_id)
        for member in members
    ):
        return True
    counts = rollout.counts(index, facts)
    # Too few reports to judge: late ones may still come, until the timeout.
    if counts.reported >= required_reports(rollout.strategy.gates.failure, counts):
        return False
    started = rollout.waves[index].started_at
    return started is not None and now - started < silent_timeout(rollout)


def _assign(plan: Plan, chosen: Iterable[Member], facts: Facts, now: datetime) -> Plan:
    members = dict(plan.rollout.members)
    assignments = list(plan.assignments)
    for member in chosen:
        fact = facts[member.device_id]
        assign = Assign(member.device_id, plan.rollout.release, fact.generation)
        members[member.device_id] = replace(
            member,
            state=step(MEMBER_STEPS, member.state, MemberState.ASSIGNED),
            previous_release=member.previous_release if member.generation else fact.current_release,
            generation=assign.generation,
            assigned_at=now,
            reachable_at_assignment=fact.reachable,
        )
        assignments.append(assign)
    return Plan(replace(plan.rollout, members=members), tuple(assignments))


def _soak(rollout: Rollout, index: int, facts: Facts, now: datetime) -> Rollout:
    failure = early_failure(rollout.strategy.gates.failure, rollout.counts(index, facts))
    if failure is not None:
        return _fail(rollout, index, failure)
    until = rollout.waves[index].soak_until
    if until is not None and now < until:
        return rollout
    return _change(rollout, index, WaveState.EVALUATING)


def verdicts(rollout: Rollout, index: int, facts: Facts) -> tuple[Verdict, ...]:
    """Return the verdict of every gate on a finished wave."""
    return (judge_failures(rollout.strategy.gates.failure, rollout.counts(index, facts)),)


def _evaluate(rollout: Rollout, index: int, facts: Facts) -> Rollout:
    found = verdicts(rollout, index, facts)
    outcome = worst(found)
    reason = "; ".join(one.detail for one in found if one.outcome is outcome)
    return _change(rollout, index, WaveState(outcome.value), verdicts=found, reason=reason)


def _fail(rollout: Rollout, index: int, verdict: Verdict) -> Rollout:
    return _change(rollout, index, WaveState.FAILED, verdicts=(verdict,), reason=verdict.detail)


def _stop(rollout: Rollout, wave: Wave) -> Rollout:
    """Enter the state that a wave which did not pass leads to."""
    reason = f"wave {wave.name} {wave.state}: {wave.reason}"
    if wave.state is WaveState.INCONCLUSIVE:
        return enter(rollout, RolloutState.PAUSED, reason)
    after = {
        OnFailure.ROLLBACK: RolloutState.ROLLING_BACK,
        OnFailure.PAUSE: RolloutState.PAUSED,
        OnFailure.ABORT: RolloutState.ABORTED,
    }[rollout.strategy.on_failure]
    return enter(rollout, after, reason)


def _change(
    rollout: Rollout,
    index: int,
    state: WaveState,
    *,
    reason: str = "",
    started_at: datetime | None = None,
    soak_until: datetime | None = None,
    verdicts: tuple[Verdict, ...] = (),
) -> Rollout:
    wave = rollout.waves[index]
    changed = replace(
        wave,
        state=step(WAVE_STEPS, wave.state, state),
        reason=reason,
        started_at=started_at or wave.started_at,
        soak_until=soak_until or wave.soak_until,
        verdicts=verdicts,
    )
    return replace(rollout, waves=(*rollout.waves[:index], changed, *rollout.waves[index + 1 :]))
