"""A wrong clock and expired metadata are waited out and shown; only long ones reject an update."""

from dataclasses import replace
from pathlib import Path

import pytest

from agent.backoff import Backoff
from agent.journal import Assignment
from agent.update.machine import State
from artifact.errors import ClockSetBackError, ExpiredMetadataError, UntrustedError
from artifact.trust.statements import Directive
from tests.agent.box import Life, World, eventually


class Clock:
    """A verifier on a box whose clock is wrong until ``right``."""

    def __init__(self, world: World, error: UntrustedError) -> None:
        self.now = 0.0
        self.right = False
        self.tries = 0
        self._error = error
        self._directive = world.publisher.directive
        world.publisher.directive = self.directive  # type: ignore[method-assign]

    async def directive(self, assignment: Assignment) -> Directive:
        self.tries += 1
        if not self.right:
            raise self._error
        return await self._directive(assignment)

    def advance(self, seconds: float, _: float) -> float:
        """Count a wait instead of sleeping."""
        self.now += 60
        return seconds


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def patient(life: Life, clock: Clock) -> None:
    steps = replace(
        life.steps,
        clock=lambda: clock.now,
        patience_seconds=900,
        patience_backoff=lambda: Backoff(0.01, 0.01, uniform=clock.advance),
    )
    life.steps = life.engine._steps = steps


BEHIND = ClockSetBackError("this machine's clock is 3601 s behind", advice="Set the clock.")
EXPIRED = ExpiredMetadataError("timestamp is expired", advice="Sign it again.")


@pytest.mark.parametrize("error", [BEHIND, EXPIRED], ids=["clock", "metadata"])
async def test_an_update_continues_once_the_fault_has_ended(
    world: World, error: UntrustedError
) -> None:
    assignment = world.publish("1")
    clock = Clock(world, error)
    async with Life(world) as life:
        patient(life, clock)
        shown: list[str] = []
        life.listeners.append(lambda: shown.append(life.engine.status().detail))

        def correct() -> None:
            clock.right = clock.tries >= 3

        life.listeners.append(correct)
        receipt = await life.do(assignment)
        assert receipt.outcome == State.COMMITTED
        assert clock.tries == 4
        assert f"{error} {error.advice}" in shown
        assert life.engine.status().detail == ""


async def test_a_fault_that_stays_rejects_the_update_with_its_own_reason(world: World) -> None:
    assignment = world.publish("1")
    clock = Clock(world, BEHIND)
    async with Life(world) as life:
        patient(life, clock)
        receipt = await life.do(assignment)
        assert (receipt.outcome, receipt.reason) == (State.REJECTED, "clock_set_back")
        assert clock.tries == 16


async def test_a_newer_assignment_ends_the_wait(world: World) -> None:
    assignment = world.publish("1")
    clock = Clock(world, BEHIND)
    async with Life(world) as life:
        patient(life, clock)
        clock.advance = lambda seconds, _: seconds  # type: ignore[method-assign]
        life.engine.assign(assignment)
        await eventually(lambda: "behind" in life.engine.status().detail)
        clock.right = True
        receipt = await life.do(replace_generation(assignment))
        assert receipt.outcome == State.COMMITTED


async def test_metadata_that_is_not_trusted_is_rejected_at_once(world: World) -> None:
    assignment = world.publish("1")
    clock = Clock(world, UntrustedError("signed by 0/1 keys", advice="Do not install it."))
    async with Life(world) as life:
        patient(life, clock)
        receipt = await life.do(assignment)
        assert (receipt.outcome, receipt.reason) == (State.REJECTED, "untrusted")
        assert clock.tries == 1


def replace_generation(assignment: Assignment) -> Assignment:
    return Assignment(
        generation=assignment.generation + 1,
        release=assignment.release,
        manifest_sha256=assignment.manifest_sha256,
    )
