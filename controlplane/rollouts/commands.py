"""Effects of operators' commands and of receipts on a rollout."""

from dataclasses import dataclass, replace
from datetime import datetime

from controlplane.errors import ConflictError
from controlplane.rollouts.forward import current_wave
from controlplane.rollouts.machine import (
    MEMBER_STEPS,
    ROLLOUT_STEPS,
    WAVE_STEPS,
    MemberState,
    RolloutState,
    WaveState,
    step,
)
from controlplane.rollouts.plan import enter
from controlplane.rollouts.records import Facts, Member, Rollout
from controlplane.rollouts.strategy import Strategy
from controlplane.rollouts.undoing import revertible


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """A receipt's result of one generation; ``interrupted`` is not the release's fault."""

    generation: int
    committed: bool
    detail: str = ""
    bytes_downloaded: int = 0
    switch_seconds: float = 0.0
    interrupted: bool = False


def pause(rollout: Rollout, reason: str, now: datetime) -> Rollout:
    """Stop giving out assignments; devices that have one continue."""
    _check(rollout, RolloutState.PAUSED, "paused")
    return replace(enter(rollout, RolloutState.PAUSED, reason), updated_at=now)


def resume(rollout: Rollout, facts: Facts, now: datetime) -> Rollout:
    """Continue, and accept the cause of the stop: the failures so far, or too little data."""
    if rollout.state is not RolloutState.PAUSED:
        raise _refusal(rollout, "resumed")
    index = current_wave(rollout)
    waves = list(rollout.waves)
    if index is not None:
        wave = waves[index]
        if wave.state is WaveState.FAILED:
            waves[index] = replace(
                wave,
                state=step(WAVE_STEPS, wave.state, WaveState.RUNNING),
                # Only failures after this count: otherwise the gate would fail again at once.
                acknowledged=rollout.counts(index, facts).failed,
            )
        elif wave.state is WaveState.INCONCLUSIVE:
            waves[index] = replace(
                wave,
                state=step(WAVE_STEPS, wave.state, WaveState.PASSED),
                reason=f"accepted by an operator: {wave.reason}",
            )
    resumed = enter(rollout, RolloutState.RUNNING)
    return replace(resumed, waves=tuple(waves), updated_at=now)


def abort(rollout: Rollout, reason: str, now: datetime) -> Rollout:
    """End the rollout and leave every device where it is."""
    _check(rollout, RolloutState.ABORTED, "aborted")
    return replace(_end(rollout, RolloutState.ABORTED, reason), updated_at=now)


def roll_back(rollout: Rollout, facts: Facts, reason: str, now: datetime) -> Rollout:
    """Send back every device that no other rollout has moved since."""
    _check(rollout, RolloutState.ROLLING_BACK, "rolled back")
    if not revertible(rollout, facts):
        raise ConflictError(
            f"rollout {rollout.id} has no device left to send back",
            advice="None was given the release (then abort), or a later rollout moved them all "
            "(then roll that one back): see `flotilla rollout list`.",
        )
    return replace(_end(rollout, RolloutState.ROLLING_BACK, reason), updated_at=now)


def retries_allowed(state: RolloutState, strategy: Strategy) -> int:
    """Return the number of retries; zero in a rollout that gives out no more assignments."""
    return 0 if state.finished else strategy.max_retries


def settle(member: Member, outcome: UpdateResult, max_retries: int = 0) -> Member:
    """Return the member after its receipt; unchanged by a repeat or another generation."""
    # Receipts repeat after a lost acknowledgement, and may come after the device was sent back.
    if outcome.generation != member.generation:
        return member
    if outcome.interrupted and not outcome.committed and member.retries < max_retries:
        return _try_again(member, outcome)
    if member.state is MemberState.ASSIGNED:
        after = MemberState.SUCCEEDED if outcome.committed else MemberState.FAILED
        return replace(
            member,
            state=step(MEMBER_STEPS, member.state, after),
            succeeded=outcome.committed,
            detail=outcome.detail,
            bytes_downloaded=outcome.bytes_downloaded,
            switch_seconds=outcome.switch_seconds,
        )
    if member.state is MemberState.REVERTING:
        after = MemberState.REVERTED if outcome.committed else MemberState.FAILED
        return replace(
            member,
            state=step(MEMBER_STEPS, member.state, after),
            detail=member.detail if outcome.committed else f"could not go back: {outcome.detail}",
            bytes_downloaded=outcome.bytes_downloaded,
            switch_seconds=outcome.switch_seconds,
        )
    return member


def _try_again(member: Member, outcome: UpdateResult) -> Member:
    if member.state not in {MemberState.ASSIGNED, MemberState.REVERTING}:
        return member
    forward = member.state is MemberState.ASSIGNED
    # The generation is spent either way. A device on its way back is failed until it is sent
    # again, so that it counts if the retry never comes.
    after = MemberState.PENDING if forward else MemberState.FAILED
    return replace(
        member,
        state=step(MEMBER_STEPS, member.state, after),
        detail=f"{outcome.detail}; trying again" if forward else member.detail,
        sent_back=False,
        retries=member.retries + 1,
    )


def _end(rollout: Rollout, state: RolloutState, reason: str) -> Rollout:
    """Enter a state in which no wave goes on; a wave in progress becomes inconclusive."""
    waves = tuple(
        replace(
            wave,
            state=step(WAVE_STEPS, wave.state, WaveState.INCONCLUSIVE),
            reason="not judged: the rollout was ended",
        )
        if wave.state in {WaveState.RUNNING, WaveState.SOAKING, WaveState.EVALUATING}
        else wave
        for wave in rollout.waves
    )
    return replace(enter(rollout, state, reason), waves=waves)


def _check(rollout: Rollout, after: RolloutState, verb: str) -> None:
    if after not in ROLLOUT_STEPS[rollout.state]:
        raise _refusal(rollout, verb)


def _refusal(rollout: Rollout, verb: str) -> ConflictError:
    return ConflictError(
        f"rollout {rollout.id} is {rollout.state}, so it cannot be {verb}",
        advice=f"`flotilla rollout show {rollout.id}` tells what happened to it.",
    )
