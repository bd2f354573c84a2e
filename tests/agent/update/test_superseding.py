"""A newer assignment replaces one before switching, and waits for one after it.

An assignment that loops is given up.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from agent.journal import Journal
from agent.update.job import UpdateJob
from agent.update.machine import MAX_STORES, Event, State
from agent.update.steps import Steps
from tests.agent.box import Killed, Life, World
from tests.faults.answers import HAPPY, ONE, UNDONE, WORKING, answer, check_serves
from tests.faults.failing_steps import fails_in

THREE = "acme/assistant@3"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class Halt:
    """Blocks the step of one state of one assignment at its end until ``release`` is set."""

    def __init__(self, patch: pytest.MonkeyPatch, state: State, generation: int) -> None:
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        real = Steps.of

        def of(steps: Steps, current: State) -> Callable[[UpdateJob], Awaitable[Event]]:
            async def work(job: UpdateJob) -> Event:
                event = await real(steps, current)(job)
                if (current, job.assignment.generation) == (state, generation):
                    self.reached.set()
                    await self.go_on.wait()
                return event

            return work

        patch.setattr(Steps, "of", of)


@pytest.mark.parametrize("state", WORKING[:5])
async def test_what_has_not_switched_is_superseded(
    world: World, monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    halt = Halt(monkeypatch, state, 2)
    async with Life(world) as life:
        await life.do(world.publish("1"))
        life.chain.clear()
        life.engine.assign(world.publish("2"))
        await halt.reached.wait()
        await life.do(world.publish("3"))
        assert life.chain == [*WORKING[: WORKING.index(state) + 1], *HAPPY]
        assert await answer(life) == "This is release 3"
        assert life.pointers == ("", THREE, ONE)
        assert [receipt.generation for receipt in life.journal.receipts()] == [1, 3]
        # All its files and workers are gone.
        assert len(life.supervisor._workers) == 1
        assert len(life.files()) == 2


@pytest.mark.parametrize("state", [*WORKING[5:], State.ROLLING_BACK])
async def test_what_has_switched_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
        life.chain.clear()
        ended = HAPPY
        if state is State.ROLLING_BACK:
            ended = [*WORKING, *UNDONE]
            fails_in({State.SOAKING}, monkeypatch, before=True)
        with monkeypatch.context() as patch:
            halt = Halt(patch, state, 2)
            life.engine.assign(world.publish("2"))
            await halt.reached.wait()
            third, fourth = world.publish("3"), world.publish("4")
            life.engine.assign(third)
            # The newest one counts.
            life.engine.assign(fourth)
            assert life.engine.status().generation == 2
            halt.go_on.set()
            await life.until(State.IDLE, 2)
        await life.until(State.IDLE, 4)
        assert life.chain == [*ended, *ended]
        assert [receipt.generation for receipt in life.journal.receipts()] == [1, 2, 4]


@pytest.mark.parametrize("generation", [1, 2])
async def test_a_generation_that_is_not_newer_restarts_no_update(
    world: World, monkeypatch: pytest.MonkeyPatch, generation: int
) -> None:
    halt = Halt(monkeypatch, State.FETCHING, 2)
    async with Life(world) as life:
        await life.do(world.publish("1"))
        life.chain.clear()
        second = world.publish("2")
        life.engine.assign(second)
        await halt.reached.wait()
        repeated = msgspec.structs.replace(second, generation=generation)
        life.engine.assign(repeated)
        halt.go_on.set()
        await life.until(State.IDLE, 2)
        assert life.chain == HAPPY
        # Also after its end: the server repeats the standing assignment on every connection.
        life.engine.assign(repeated)
        await life.do(world.publish("3"))
        assert life.chain == [*HAPPY, *HAPPY]
        assert [receipt.generation for receipt in life.journal.receipts()] == [1, 2, 3]


# -- loops


@pytest.mark.parametrize(
    ("killed_in", "entered", "ends"),
    [
        (State.VERIFYING, State.VERIFYING, [State.REJECTED]),
        (State.PLANNING, State.PLANNING, [State.REJECTED]),
        (State.FETCHING, State.FETCHING, [State.REJECTED]),
        (State.STAGING, State.STAGING, [State.REJECTED]),
        (State.PROBATION, State.STAGING, [State.REJECTED]),
        # A rollback runs whatever its count; only its own loop ends it.
        (State.SWITCHING, State.ROLLING_BACK, [State.INCONSISTENT]),
        (State.SOAKING, State.ROLLING_BACK, [State.INCONSISTENT]),
    ],
)
async def test_a_state_that_was_stored_28_times_is_not_entered_again(
    world: World, killed_in: State, entered: State, ends: list[State]
) -> None:
    await _kill(world, killed_in, entered, MAX_STORES)
    async with Life(world) as life:
        await life.until(State.IDLE, 2)
        assert life.chain == [*ends, State.IDLE]
        receipt = life.journal.receipts()[-1]
        assert "entered 29 times" in receipt.detail
        assert receipt.reason == ("loop" if ends == [State.REJECTED] else "interrupted")
        await check_serves(life, ONE)


async def test_a_state_that_was_stored_27_times_is(world: World) -> None:
    await _kill(world, State.FETCHING, State.FETCHING, MAX_STORES - 1)
    async with Life(world) as life:
        await life.until(State.IDLE, 2)
        assert life.chain == HAPPY[2:]


async def _kill(world: World, state: State, stored: State, times: int) -> None:
    """Start the second update with a state that was already stored so often."""
    async with Life(world) as life:
        await life.do(world.publish("1"))
    async with Life(world, die_in=state) as life:
        with pytest.raises(Killed):
            await life.do(world.publish("2"))
    journal = Journal(world.root / "journal.db")
    update = journal.update()
    assert update is not None
    journal.record(update=msgspec.structs.replace(update, stores=update.stores | {stored: times}))
    journal.close()
