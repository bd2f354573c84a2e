"""A box that cannot load its current release serves last_good and keeps retrying."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from agent.errors import LoadFailedError, NothingServedError
from agent.journal import Journal
from agent.supervisor import Worker, WorkerSpec
from agent.update.loading import files_of
from agent.update.machine import State
from runtimes.fake import FakeModel, Faults
from tests.agent.box import MIB, Life, World, eventually
from tests.faults.answers import HAPPY, ONE, TWO, answer

THREE = "acme/assistant@3"
WRONG = FakeModel(faults=Faults(wrong_outputs=True))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class Shortage:
    """A lack of memory, caused by other programs, for the given releases."""

    def __init__(self, life: Life, *releases: str, reason: str = "out_of_memory") -> None:
        self.releases = set(releases)
        self.tries = 0
        self._reason = reason
        self._start = life.supervisor.start
        life.supervisor.start = self._starts  # type: ignore[method-assign]

    async def _starts(self, spec: WorkerSpec) -> Worker:
        if spec.release not in self.releases:
            return await self._start(spec)
        self.tries += 1
        raise LoadFailedError("no memory is left", reason=self._reason)


async def commit(world: World, *versions: str) -> None:
    async with Life(world) as life:
        for version in versions:
            await life.do(world.publish(version))


async def test_what_was_drained_and_did_not_load_again_serves_once_there_is_memory(
    world: World,
) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
        world.free_memory_bytes = 0
        shortage = Shortage(life, ONE)
        receipt = await life.do(world.publish("2", WRONG))
        problem = f"no release serves: {ONE} did not load: no memory is left"
        assert life.engine.status().detail == problem
        assert (life.engine.status().current_release, receipt.current_release) == ("", "")
        assert f"after the update {problem}" in receipt.detail
        with pytest.raises(NothingServedError):
            await answer(life)
        await eventually(lambda: shortage.tries > 5)
        shortage.releases.clear()
        await eventually(lambda: life.serves == ONE)
        assert await answer(life) == "This is release 1"
        await eventually(lambda: not life.steps.keeper.problem)
        tries = shortage.tries
        await life.do(world.publish("3"))
        assert (life.serves, shortage.tries) == (THREE, tries)


async def test_a_current_release_that_is_short_of_memory_is_not_given_up(world: World) -> None:
    await commit(world, "1", "2")
    life = Life(world)
    shortage = Shortage(life, TWO)
    async with life:
        await eventually(lambda: shortage.tries > 3)
        assert await answer(life) == "This is release 1"
        assert life.pointers == ("", TWO, ONE)
        assert life.engine.status().detail == f"{ONE} serves: {TWO} did not load: no memory is left"
        assert life.engine.status().current_release == ONE
        shortage.releases.clear()
        await eventually(lambda: life.serves == TWO)
        assert await answer(life) == "This is release 2"
        await eventually(lambda: life.engine.status().detail == "")
        assert life.engine.status().current_release == TWO
        assert life.pointers == ("", TWO, ONE)
        assert len(life.supervisor._workers) == 1


async def test_a_release_planned_by_an_older_agent_serves_after_an_upgrade(world: World) -> None:
    """Its budget of 2 MiB bounded the model alone; a whole process of the fake runtime takes 22."""
    await commit(world, "1")
    journal = Journal(world.root / "journal.db")
    pointers = journal.pointers()
    assert pointers.current is not None
    plan = pointers.current.slots["chat"]
    assert plan.counts_process
    old = msgspec.structs.replace(
        plan,
        decision=replace(plan.decision, memory_budget_bytes=2 * MIB),
        counts_process=False,
    )
    current = msgspec.structs.replace(pointers.current, slots={"chat": old})
    journal.record(pointers=msgspec.structs.replace(pointers, current=current))
    journal.close()
    async with Life(world) as life:
        await eventually(lambda: life.serves == ONE)
        assert await answer(life) == "This is release 1"


async def test_what_serves_in_its_place_is_not_stopped_for_a_try(world: World) -> None:
    await commit(world, "1", "2")
    world.free_memory_bytes = 0
    life = Life(world)
    shortage = Shortage(life, TWO)
    async with life:
        await eventually(lambda: life.serves == ONE)
        shortage.releases.clear()
        worker = life.serving.deployment.workers["chat"]  # type: ignore[union-attr]
        world.free_memory_bytes = 1 << 40
        await eventually(lambda: life.serves == TWO)
        assert worker.stats().restarts == 0
        assert shortage.tries == 1


async def test_an_error_that_nobody_foresaw_ends_neither_the_daemon_nor_the_tries(
    world: World,
) -> None:
    await commit(world, "1", "2")
    life = Life(world)
    start, broken = life.supervisor.start, {TWO}

    async def breaks(spec: WorkerSpec) -> Worker:
        if spec.release in broken:
            raise ValueError("never thought of")
        return await start(spec)

    life.supervisor.start = breaks  # type: ignore[method-assign]
    async with life:
        await eventually(lambda: "ValueError: never thought of" in life.engine.status().detail)
        assert life.serves == ONE
        broken.clear()
        await eventually(lambda: life.serves == TWO)


@pytest.mark.parametrize("reason", ["refused", "no_runtime"])
async def test_a_current_release_that_never_loads_again_is_given_up(
    world: World, reason: str
) -> None:
    await commit(world, "1", "2")
    life = Life(world)
    Shortage(life, TWO, reason=reason)
    async with life:
        await eventually(lambda: life.pointers == ("", ONE, ""))
        await eventually(lambda: f"{ONE} serves: {TWO} did not load" in life.engine.status().detail)
        assert life.serves == life.engine.status().current_release == ONE
        receipt = await life.do(world.publish("3"))
        assert (receipt.current_release, receipt.last_good_release) == (THREE, ONE)


async def test_a_box_that_serves_nothing_tries_on_while_an_update_waits_for_the_server(
    world: World,
) -> None:
    await commit(world, "1")
    world.publisher.reachable.clear()
    life = Life(world)
    shortage = Shortage(life, ONE)
    async with life:
        life.engine.assign(world.publish("2"))
        await life.until(State.VERIFYING, 2)
        shortage.releases.clear()
        await eventually(lambda: life.serves == ONE)
        world.publisher.reachable.set()
        await life.until(State.IDLE, 2)
        assert life.serves == TWO
        assert life.pointers == ("", TWO, ONE)


async def test_an_update_is_never_disturbed_by_a_try(world: World) -> None:
    await commit(world, "1")
    life = Life(world)
    shortage = Shortage(life, ONE)
    async with life:
        await life.do(world.publish("2", soak_seconds=0.2))
        shortage.releases.clear()
        assert life.serves == TWO
        assert life.pointers == ("", TWO, ONE)
        assert len(life.supervisor._workers) == 1


async def test_what_served_in_place_of_current_is_what_the_next_release_falls_back_to(
    world: World,
) -> None:
    await commit(world, "1", "2")
    life = Life(world)
    Shortage(life, TWO)
    async with life:
        await eventually(lambda: life.serves == ONE)
        await life.do(world.publish("3"))
        assert life.pointers == ("", THREE, ONE)


# -- missing and altered files


def alter(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(b"?" * path.stat().st_size)


@pytest.mark.parametrize("damage", [alter, Path.unlink])
async def test_a_damaged_file_is_told_deleted_and_fetched_again(
    world: World, damage: Callable[[Path], None]
) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
        await life.do(world.publish("2"))
    (damaged,) = _files_of(world, TWO)
    damage(world.root / "store" / "files" / damaged)
    world.publisher.reachable.clear()
    async with Life(world) as life:
        # Until then last_good serves, also without a network.
        await life.until(State.VERIFYING, 2)
        assert life.pointers == ("", ONE, "")
        assert await answer(life) == "This is release 1"
        detail = f"files of {TWO} are missing or altered; fetching them again"
        assert life.engine.status().detail == detail
        assert damaged not in life.files()
        world.publisher.reachable.set()
        await life.until(State.IDLE, 2)
        assert life.pointers == ("", TWO, ONE)
        assert await answer(life) == "This is release 2"
        receipts = life.journal.receipts()
        assert [receipt.generation for receipt in receipts] == [1, 2]
        assert detail in receipts[1].detail


async def test_the_only_release_of_a_box_is_fetched_again(world: World) -> None:
    await commit(world, "1")
    for path in (world.root / "store" / "files").iterdir():
        alter(path)
    async with Life(world) as life:
        await eventually(lambda: life.serves == ONE)
        await life.until(State.IDLE, 1)
        assert life.chain == HAPPY
        assert life.pointers == ("", ONE, "")
        assert not life.steps.keeper.problem


async def test_a_damaged_release_that_is_not_listed_any_more_is_not_asked_for_for_ever(
    world: World,
) -> None:
    await commit(world, "1", "2")
    del world.publisher.listed[TWO]
    (world.root / "store" / "files" / _files_of(world, TWO).pop()).unlink()
    async with Life(world) as life:
        await life.until(State.REJECTED, 2)
        await life.until(State.IDLE, 2)
        asked = world.publisher.asked
        assert life.serves == ONE
        await life.do(world.publish("3"))
        assert life.pointers == ("", THREE, ONE)
        assert world.publisher.asked == asked + 1


def _files_of(world: World, reference: str) -> set[str]:
    journal = Journal(world.root / "journal.db")
    held = journal.pointers().proven(reference)
    journal.close()
    return {file.sha256 for file in files_of(held)}


# -- a damaged journal


def damage_journal(world: World) -> None:
    (world.root / "journal.db").write_bytes(b"rotten" * 1000)


async def test_a_box_with_a_damaged_journal_serves_and_says_so_until_it_is_given_more(
    world: World,
) -> None:
    await commit(world, "1", "2")
    damage_journal(world)
    for _ in range(2):
        async with Life(world) as life:
            await eventually(lambda: life.serves)
            await eventually(lambda: "journal was repaired" in life.engine.status().detail)
            assert await answer(life) == "This is release 2"
            assert life.pointers == ("", TWO, ONE)
            assert [each.generation for each in life.journal.receipts()] == [1, 2]
    async with Life(world) as life:
        await life.do(world.publish("3"))
        assert life.engine.status().detail == ""


async def test_an_update_in_hand_goes_on_and_its_receipt_says_so(world: World) -> None:
    await commit(world, "1")
    world.publisher.reachable.clear()
    async with Life(world) as life:
        life.engine.assign(world.publish("2"))
        await life.until(State.VERIFYING, 2)
    damage_journal(world)
    world.publisher.reachable.set()
    async with Life(world) as life:
        await life.until(State.IDLE, 2)
        receipt = life.journal.receipts()[-1]
        assert receipt.outcome == State.COMMITTED
        assert "the journal was repaired" in receipt.detail


async def test_after_a_damaged_journal_only_files_that_are_still_whole_serve(world: World) -> None:
    await commit(world, "1", "2")
    path = world.root / "store" / "files" / _files_of(world, TWO).pop()
    path.chmod(0o600)
    # It still loads, with another reply.
    path.write_bytes(path.read_bytes().replace(b"release 2", b"release 9"))
    damage_journal(world)
    world.publisher.reachable.clear()
    async with Life(world) as life:
        await eventually(lambda: life.pointers[1] == ONE)
        assert await answer(life) == "This is release 1"
