"""The tables allow exactly the steps that DESIGN.md draws."""

import pytest

from controlplane.rollouts.machine import (
    MEMBER_STEPS,
    ROLLOUT_STEPS,
    WAVE_STEPS,
    MemberState,
    RolloutState,
    WaveState,
    step,
)


def edges(table: dict[object, frozenset[object]]) -> set[str]:
    return {f"{before} -> {after}" for before, afters in table.items() for after in afters}


def test_rollout_steps() -> None:
    assert edges(ROLLOUT_STEPS) == {  # type: ignore[arg-type]
        "draft -> awaiting_approval",
        "draft -> scheduled",
        "draft -> aborted",
        "awaiting_approval -> scheduled",
        "awaiting_approval -> aborted",
        "scheduled -> running",
        "scheduled -> aborted",
        "running -> paused",
        "running -> succeeded",
        "running -> rolling_back",
        "running -> aborted",
        "paused -> running",
        "paused -> rolling_back",
        "paused -> aborted",
        "succeeded -> rolling_back",
        "aborted -> rolling_back",
        "rolling_back -> rolled_back",
    }


def test_wave_steps() -> None:
    assert edges(WAVE_STEPS) == {  # type: ignore[arg-type]
        "pending -> running",
        "running -> soaking",
        "running -> failed",
        "running -> inconclusive",
        "soaking -> evaluating",
        "soaking -> failed",
        "soaking -> inconclusive",
        "evaluating -> passed",
        "evaluating -> failed",
        "evaluating -> inconclusive",
        "failed -> running",
        "inconclusive -> passed",
    }


def test_device_steps() -> None:
    assert edges(MEMBER_STEPS) == {  # type: ignore[arg-type]
        "pending -> assigned",
        "pending -> reverting",
        "assigned -> pending",
        "assigned -> succeeded",
        "assigned -> failed",
        "assigned -> reverting",
        "succeeded -> reverting",
        "failed -> reverting",
        "reverting -> reverted",
        "reverting -> failed",
    }


def test_every_state_has_its_row_and_every_other_step_is_refused() -> None:
    assert set(ROLLOUT_STEPS) == set(RolloutState)
    assert set(WAVE_STEPS) == set(WaveState)
    assert set(MEMBER_STEPS) == set(MemberState)
    with pytest.raises(AssertionError, match="no step from rolled_back to running"):
        step(ROLLOUT_STEPS, RolloutState.ROLLED_BACK, RolloutState.RUNNING)
