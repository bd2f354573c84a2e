"""An error and a SIGKILL in every state: the exact chain and the live release afterwards.

tests.agent.update covers the reason of each failure and a death right after a state is stored. Here
steps fail before and after their effects, and real processes die at the end of a step.
test_power_loss covers power cuts in every state.
"""

import asyncio
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.errors import AgentError, DiskFailedError, JournalError
from agent.update.machine import OUTCOMES, TABLE, State
from agent.update.steps import Steps
from tests.agent.box import Life, World, eventually
from tests.faults.answers import (
    AFTER_RESTART,
    HAPPY,
    ONE,
    TWO,
    UNDONE,
    WORKING,
    answer,
    check_serves,
)
from tests.faults.failing_steps import fails_in

ROOT = Path(__file__).parents[2]
# Outcomes that leave the first release live.
LOST = {State.REJECTED, State.ROLLED_BACK, State.INCONSISTENT}


def test_no_state_is_left_out() -> None:
    assert set(AFTER_RESTART) == set(TABLE)
    assert OUTCOMES - {State.COMMITTED} == LOST
    assert {*WORKING, State.ROLLING_BACK} == set(TABLE) - OUTCOMES - {State.IDLE}


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a stopped box whose current release is the first one."""

    async def live(world: World) -> None:
        async with Life(world) as life:
            await life.do(world.publish("1"))

    root = tmp_path_factory.mktemp("committed")
    asyncio.run(live(World(root)))
    return root


@pytest.fixture
def world(committed: Path, tmp_path: Path) -> World:
    shutil.copytree(committed, tmp_path / "box")
    world = World(tmp_path / "box")
    world.publish("1")
    return world


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("state", WORKING)
async def test_an_error_in_a_states_work_leaves_the_old_release_serving(
    world: World, monkeypatch: pytest.MonkeyPatch, state: State, before: bool
) -> None:
    async with Life(world) as life:
        with monkeypatch.context() as patch:
            fails_in({state}, patch, before=before)
            receipt = await life.do(world.publish("2"))
        began = WORKING[: WORKING.index(state) + 1]
        ended = UNDONE if state in WORKING[5:] else [State.REJECTED, State.IDLE]
        assert life.chain == [*began, *ended]
        assert (receipt.outcome, receipt.reason) == (ended[-2], "internal_error")
        await check_serves(life, ONE)
        assert len(life.supervisor._workers) == 1
        life.chain.clear()
        await life.do(world.publish("3"))
        assert life.chain == HAPPY


@pytest.mark.parametrize("before", [True, False])
async def test_an_error_in_rolling_back_too_is_told_and_something_verified_serves(
    world: World, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    async with Life(world) as life:
        with monkeypatch.context() as patch:
            fails_in({State.SOAKING, State.ROLLING_BACK}, patch, before=before)
            receipt = await life.do(world.publish("2"))
        assert life.chain == [*WORKING, State.ROLLING_BACK, State.INCONSISTENT, State.IDLE]
        assert receipt.outcome == State.INCONSISTENT
        assert life.serves == (TWO if before else ONE)
        assert await answer(life) == f"This is release {life.serves[-1]}"
    async with Life(world) as life:
        await eventually(lambda: life.serves)
        await check_serves(life, ONE)


@pytest.mark.parametrize(
    ("failing", "chain"),
    [
        (set(), HAPPY),
        ({State.STAGING}, [*WORKING[:4], State.REJECTED, State.IDLE]),
        ({State.SOAKING}, [*WORKING, *UNDONE]),
    ],
)
@pytest.mark.parametrize("kind", [JournalError, DiskFailedError])
async def test_an_error_in_storing_a_state_or_in_the_work_of_an_outcome_changes_no_chain(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    failing: set[State],
    chain: list[State],
    kind: type[AgentError],
) -> None:
    monkeypatch.setattr("agent.update.engine.JOURNAL_RETRY_SECONDS", 0.01)
    async with Life(world) as life:
        record, tried = life.journal.record, list[State]()

        def record_at_the_second_try(**changes: Any) -> None:
            state = changes["update"].state
            if kind is JournalError and state not in tried:
                tried.append(state)
                raise JournalError("the disk is full")
            record(**changes)

        async def clear(_: Steps) -> int:
            raise DiskFailedError("the disk failed")

        fails_in(failing, monkeypatch, before=True)
        life.journal.record = record_at_the_second_try  # type: ignore[method-assign]
        if kind is DiskFailedError:
            monkeypatch.setattr(Steps, "clear_store", clear)
        await life.do(world.publish("2"))
        assert life.chain == chain
        assert tried == (chain if kind is JournalError else [])
        assert life.serves == (TWO if chain == HAPPY else ONE)


@pytest.mark.parametrize("state", TABLE)
async def test_a_process_killed_in_a_states_work_ends_with_the_old_release_or_the_new(
    world: World, state: State
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.killed_life", str(world.root), state), cwd=ROOT
    )
    assert await process.wait() == -signal.SIGKILL
    world.publish("2")
    async with Life(world) as life:
        await eventually(lambda: life.serves)
        await life.until(State.IDLE, 2)
        assert life.chain == AFTER_RESTART[state]
        undone = UNDONE[0] in life.chain or state in LOST
        await check_serves(life, ONE if undone else TWO)
        assert life.journal.receipts()[-1].current_release == life.serves
