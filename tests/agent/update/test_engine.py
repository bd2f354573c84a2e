"""Assignments on a box without a network: the live release, the journal and the receipts.

Worker processes, journal and store are real. The runtime is the fake one; the server is in memory.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent.errors import JournalError, ModelRefusedError, NothingServedError
from agent.journal import Assignment
from agent.selection.memory_prediction import PROCESS_BYTES
from agent.update import engine as engines
from agent.update.machine import State
from artifact.manifest import (
    Component,
    Objective,
    Pipeline,
    Route,
    SelectionPolicy,
    Target,
    Task,
    decode_release,
)
from runtimes.base import Sampling
from runtimes.fake import FakeModel, Faults
from tests.agent.box import MIB, Killed, Life, World, eventually

S = State
WORKING = [
    S.VERIFYING,
    S.PLANNING,
    S.FETCHING,
    S.STAGING,
    S.PROBATION,
    S.SWITCHING,
    S.SOAKING,
]
HAPPY = [*WORKING, S.COMMITTED, S.IDLE]
UNDONE = [S.ROLLING_BACK, S.ROLLED_BACK, S.IDLE]
ONE, TWO, THREE = (f"acme/assistant@{version}" for version in (1, 2, 3))
NOTHING = Assignment(generation=9, release="", manifest_sha256="")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def answer(life: Life) -> str:
    """Return the text that local programs receive from the route."""
    async with life.serving.lease("assistant") as worker:
        batches = worker.generate("hi", None, Sampling(max_tokens=17))
        return "".join([piece.text async for batch in batches for piece in batch])


async def test_the_first_release_is_fetched_proven_and_served(world: World) -> None:
    async with Life(world) as life:
        receipt = await life.do(world.publish("1"))
        assert life.chain == HAPPY
        assert await answer(life) == "This is release 1"
    assert (receipt.outcome, receipt.reason, receipt.release) == (S.COMMITTED, "", ONE)
    assert receipt.received_bytes == world.server.sent_bytes > 0
    assert [decision.chosen_variant for decision in receipt.decisions] == ["v0"]
    assert {check.outcome for check in receipt.checks} == {"passed"}
    assert {check.name for check in receipt.checks} == {
        "reads",
        "talks",
        "chat",
        "completion",
        "benchmark",
        "cost",
    }
    assert (receipt.current_release, receipt.last_good_release) == (ONE, "")


async def test_the_next_release_keeps_the_one_before_as_last_good(world: World) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
        receipt = await life.do(world.publish("2"))
        assert life.serves == TWO
        assert life.pointers == ("", TWO, ONE)
    assert (receipt.current_release, receipt.last_good_release) == (TWO, ONE)


async def test_an_adapter_is_fetched_alone_where_its_base_is_and_chosen_by_name(
    world: World,
) -> None:
    base = FakeModel(reply="plain. ", padding="x" * 100_000)
    polite = FakeModel(reply="polite. ", padding="y" * 10_000)
    async with Life(world) as life:
        await life.do(world.publish("1", base))
        receipt = await life.do(world.publish("2", base, adapters={"polite": polite}))
        assert receipt.outcome == S.COMMITTED
        # The adapter, its index and the manifest; nothing of the base.
        assert 10_000 < receipt.received_bytes < 20_000
        async with life.serving.lease("assistant") as worker:
            for adapter, said in (("polite", "polite."), ("", "plain. ")):
                sampling = Sampling(max_tokens=7, adapter=adapter)
                batches = worker.generate("hi", None, sampling)
                text = "".join([piece.text async for batch in batches for piece in batch])
                assert text == said
            with pytest.raises(ModelRefusedError, match="no adapter 'rude'"):
                [batch async for batch in worker.generate("hi", None, Sampling(adapter="rude"))]
        (kept,) = [file for file in world.adapter_files if life.store.has(file)]
        await life.do(world.publish("3", base))
        await life.do(world.publish("4", base))
        assert not life.store.has(kept)


async def test_an_adapter_that_makes_its_base_too_big_counts(world: World) -> None:
    base = FakeModel(memory_bytes=60 << 20)
    adapter = FakeModel(padding="y" * (5 << 20))
    async with Life(world) as life:
        receipt = await life.do(world.publish("1", base, adapters={"huge": adapter}))
    assert receipt.reason == "no_variant_fits"
    assert "budget 64.0 MiB" in receipt.decisions[0].candidates[0].reason


async def test_a_rollback_to_last_good_downloads_nothing(world: World) -> None:
    async with Life(world) as life:
        first = world.publish("1")
        await life.do(first)
        await life.do(world.publish("2"))
        sent = world.server.sent_bytes
        receipt = await life.do(
            Assignment(generation=3, release=ONE, manifest_sha256=first.manifest_sha256)
        )
        assert life.serves == ONE
        assert life.pointers == ("", ONE, "")
    assert world.server.sent_bytes == sent
    assert receipt.outcome == S.COMMITTED
    assert receipt.received_bytes == 0
    assert "proven here before" in receipt.detail
    assert [decision.chosen_variant for decision in receipt.decisions] == ["v0"]


@pytest.mark.parametrize("versions", [("1",), ("1", "2")], ids=["current", "last_good"])
async def test_a_proven_release_is_not_reused_for_another_manifest_of_its_name(
    world: World, versions: tuple[str, ...]
) -> None:
    async with Life(world) as life:
        for version in versions:
            await life.do(world.publish(version))
        other = world.publish("1", FakeModel(reply="Another release 1. "))
        receipt = await life.do(msgspec.structs.replace(other, generation=3))
        assert receipt.outcome == S.COMMITTED
        assert receipt.received_bytes > 0
        assert await answer(life) == "Another release 1"
        current = life.journal.pointers().current
        assert current is not None
        assert current.manifest_sha256 == other.manifest_sha256


async def test_a_release_that_was_rolled_back_is_never_last_good(world: World) -> None:
    """Also not if the release chosen instead is older than last_good, or a later one follows."""
    async with Life(world) as life:
        first, second = world.publish("1"), world.publish("2")
        for assignment in (first, second, world.publish("3")):
            await life.do(assignment)
        assert life.pointers == ("", THREE, TWO)
        await life.do(msgspec.structs.replace(first, generation=4))
        assert life.pointers == ("", ONE, "")
        await life.do(msgspec.structs.replace(second, generation=5))
        assert life.pointers == ("", TWO, ONE)
        await life.do(msgspec.structs.replace(NOTHING, generation=6))
        assert life.pointers == ("", "", TWO)
        await life.do(msgspec.structs.replace(first, generation=7))
        assert life.pointers == ("", ONE, "")


async def test_a_rollback_is_refused_when_the_publisher_lists_it_no_more(world: World) -> None:
    async with Life(world) as life:
        first = world.publish("1")
        await life.do(first)
        await life.do(world.publish("2"))
        del world.publisher.listed[ONE]
        receipt = await life.do(
            Assignment(generation=3, release=ONE, manifest_sha256=first.manifest_sha256)
        )
        assert (receipt.outcome, receipt.reason) == (S.REJECTED, "untrusted")
        assert life.serves == TWO


async def test_a_third_release_takes_the_first_from_the_disk(world: World) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
        first = life.files()
        await life.do(world.publish("2"))
        assert first < life.files()
        await life.do(world.publish("3"))
        assert len(life.files()) == 2
        assert not first & life.files()


async def test_what_superseded_assignments_left_makes_room(world: World) -> None:
    """Files of the live release and of the candidate are kept."""
    async with Life(world) as life:
        await life.do(world.publish("1"))
        (world.root / "store" / "partial" / ("0" * 64)).write_bytes(b"x" * MIB)
        life.store._budget_bytes = MIB
        receipt = await life.do(world.publish("2"))
        assert receipt.outcome == S.COMMITTED
        assert life.pointers == ("", TWO, ONE)
        assert len(life.files()) == 2
        # No file is left to delete.
        life.store._budget_bytes = 1
        receipt = await life.do(world.publish("3"))
        assert (receipt.outcome, receipt.reason) == (S.REJECTED, "disk_full")
        assert life.serves == TWO
        assert len(life.files()) == 2


async def test_the_same_release_again_is_committed_without_a_reload(world: World) -> None:
    async with Life(world) as life:
        first = world.publish("1")
        await life.do(first)
        assert life.serving.deployment is not None
        pid = life.serving.deployment.workers["chat"].pid
        life.chain.clear()
        receipt = await life.do(
            Assignment(generation=2, release=ONE, manifest_sha256=first.manifest_sha256)
        )
        assert life.chain == [S.VERIFYING, S.COMMITTED, S.IDLE]
        assert life.serving.deployment.workers["chat"].pid == pid
    assert receipt.received_bytes == 0
    assert receipt.decisions[0].chosen_variant == "v0"


async def test_an_empty_release_stops_serving_and_survives_a_restart(world: World) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
        receipt = await life.do(NOTHING)
        assert receipt.outcome == S.COMMITTED
        assert life.serves == ""
        assert life.pointers == ("", "", ONE)
    async with Life(world) as life:
        await life.until(S.IDLE, 9)
        assert life.serves == ""


async def test_an_assignment_that_is_not_newer_is_ignored(world: World) -> None:
    async with Life(world) as life:
        first, second = world.publish("1"), world.publish("2")
        await life.do(second)
        life.chain.clear()
        life.engine.assign(second)
        life.engine.assign(first)
        await life.do(world.publish("3"))
        assert life.chain == HAPPY


# -- failures, state by state: the live release is untouched, the receipt names the reason


def unlisted(world: World) -> Assignment:
    assignment = world.publish("2")
    del world.publisher.listed[TWO]
    return assignment


def another_manifest(world: World) -> Assignment:
    assignment = world.publish("2")
    return Assignment(generation=2, release=TWO, manifest_sha256=assignment.manifest_sha256[::-1])


def manifest_gone(world: World) -> Assignment:
    assignment = world.publish("2")
    del world.server.chunks[bytes.fromhex(assignment.manifest_sha256)]
    return assignment


def too_big(world: World) -> Assignment:
    return world.publish("2", FakeModel(memory_bytes=65 * MIB))


def chunk_gone(world: World) -> Assignment:
    assignment = world.publish("2", FakeModel(reply="withheld"))
    world.server.chunks = {
        digest: data for digest, data in world.server.chunks.items() if b"withheld" not in data
    }
    return assignment


def altered(world: World) -> Assignment:
    assignment = world.publish("2", FakeModel(reply="altered"))
    world.server.altered = {
        digest: 9 for digest, data in world.server.chunks.items() if b"altered" in data
    }
    return assignment


def staged(faults: Faults) -> Callable[[World], Assignment]:
    return lambda world: world.publish("2", FakeModel(faults=faults))


@pytest.mark.parametrize(
    ("make", "last_state", "reason"),
    [
        (unlisted, S.VERIFYING, "untrusted"),
        (another_manifest, S.VERIFYING, "manifest_mismatch"),
        (manifest_gone, S.VERIFYING, "manifest_missing"),
        (too_big, S.PLANNING, "no_variant_fits"),
        (chunk_gone, S.FETCHING, "chunk_missing"),
        (altered, S.FETCHING, "download_corrupt"),
        (staged(Faults(on_load="error")), S.STAGING, "load_refused"),
        (staged(Faults(on_load="crash")), S.STAGING, "load_crashed"),
        (staged(Faults(wrong_outputs=True)), S.PROBATION, "probation_failed"),
        (staged(Faults(crash_after_tokens=2)), S.PROBATION, "probation_failed"),
    ],
)
async def test_a_failure_before_switching_leaves_the_live_release_alone(
    world: World, make: Callable[[World], Assignment], last_state: State, reason: str
) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
        assert life.serving.deployment is not None
        pid, files = life.serving.deployment.workers["chat"].pid, life.files()
        life.chain.clear()
        receipt = await life.do(make(world))
        assert life.chain == [
            *WORKING[: WORKING.index(last_state) + 1],
            S.REJECTED,
            S.IDLE,
        ]
        assert (receipt.outcome, receipt.reason) == (S.REJECTED, reason)
        assert receipt.detail
        assert (receipt.current_release, receipt.last_good_release) == (ONE, "")
        assert life.serving.deployment.workers["chat"].pid == pid
        assert await answer(life) == "This is release 1"
        assert life.pointers == ("", ONE, "")
        assert life.files() == files
        assert list((world.root / "store" / "partial").iterdir()) == []
        assert len(life.supervisor._workers) == 1


async def test_a_check_that_cannot_be_decided_is_inconclusive_never_success(world: World) -> None:
    async with Life(world) as life:
        # A text check against a tensor model cannot be measured.
        assignment = world.publish("1", FakeModel(task="tensor"))  # type: ignore[arg-type]
        receipt = await life.do(assignment)
    assert (receipt.outcome, receipt.reason) == (S.REJECTED, "probation_inconclusive")
    outcomes = {check.name: check.outcome for check in receipt.checks}
    assert (outcomes.pop("cost"), outcomes.pop("tensors")) == ("passed", "passed")
    assert set(outcomes.values()) == {"inconclusive"}


async def test_a_crash_while_soaking_rolls_back_to_what_served(world: World) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
        life.chain.clear()
        life.engine.assign(world.publish("2", soak_seconds=20))
        await life.until(S.SOAKING, 2)
        assert life.serving.deployment is not None
        os.kill(life.serving.deployment.workers["chat"].pid, signal.SIGABRT)
        await life.until(S.IDLE, 2)
        assert life.chain == [*WORKING, *UNDONE]
        assert await answer(life) == "This is release 1"
        assert life.pointers == ("", ONE, "")
        receipt = life.journal.receipts()[-1]
        assert len(life.supervisor._workers) == 1
    assert (receipt.outcome, receipt.reason) == (S.ROLLED_BACK, "crashed_in_soak")


async def test_a_worker_that_the_kernel_kills_while_soaking_ran_out_of_memory(world: World) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
        life.engine.assign(world.publish("2", soak_seconds=20))
        await life.until(S.SOAKING, 2)
        assert life.serving.deployment is not None
        os.kill(life.serving.deployment.workers["chat"].pid, signal.SIGKILL)
        await life.until(S.IDLE, 2)
        receipt = life.journal.receipts()[-1]
    assert (receipt.outcome, receipt.reason) == (S.ROLLED_BACK, "out_of_memory_in_soak")


async def test_a_crash_of_the_first_release_ever_leaves_nothing_serving(world: World) -> None:
    async with Life(world) as life:
        life.engine.assign(world.publish("1", soak_seconds=20))
        await life.until(S.SOAKING, 1)
        assert life.serving.deployment is not None
        os.kill(life.serving.deployment.workers["chat"].pid, signal.SIGKILL)
        await life.until(S.IDLE, 1)
        assert life.serves == ""
        assert life.pointers == ("", "", "")


async def test_a_rollback_that_fails_too_is_inconsistent(world: World) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
        for digest in life.files():
            (world.root / "store" / "files" / digest).unlink()
        life.chain.clear()
        life.engine.assign(world.publish("2", soak_seconds=20))
        await life.until(S.SOAKING, 2)
        assert life.serving.deployment is not None
        os.kill(life.serving.deployment.workers["chat"].pid, signal.SIGKILL)
        await life.until(S.IDLE, 2)
        assert life.chain == [*WORKING, S.ROLLING_BACK, S.INCONSISTENT, S.IDLE]
        assert life.journal.receipts()[-1].outcome == S.INCONSISTENT


# -- a kill right after each state was stored: the exact chain afterwards, and old xor new serving


@pytest.mark.parametrize(
    ("state", "afterwards"),
    [
        (S.VERIFYING, HAPPY),
        (S.PLANNING, HAPPY[1:]),
        (S.FETCHING, HAPPY[2:]),
        (S.STAGING, HAPPY[3:]),
        (S.PROBATION, HAPPY[3:]),
        (S.SWITCHING, UNDONE),
        (S.SOAKING, UNDONE),
        (S.COMMITTED, [S.IDLE]),
    ],
)
async def test_a_kill_in_any_state_ends_with_the_old_release_or_the_new(
    world: World, state: State, afterwards: list[State]
) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
    second = world.publish("2")
    async with Life(world, die_in=state) as life:
        with pytest.raises(Killed):
            await life.do(second)
    async with Life(world) as life:
        await life.until(S.IDLE, 2)
        assert life.chain == afterwards
        serves = ONE if afterwards == UNDONE else TWO
        assert life.serves == serves
        assert life.pointers[1] == serves
        receipt = life.journal.receipts()[-1]
        assert receipt.generation == 2
        assert receipt.current_release == serves
        # A restart is a fault of the box, so the control plane may assign the release again.
        assert receipt.reason == ("interrupted" if serves == ONE else "")


@pytest.mark.parametrize(
    ("state", "afterwards"),
    [(S.ROLLING_BACK, UNDONE), (S.ROLLED_BACK, [S.IDLE])],
)
async def test_a_kill_while_rolling_back_rolls_back_again(
    world: World, state: State, afterwards: list[State]
) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
    second = world.publish("2", soak_seconds=20)
    async with Life(world, die_in=S.SOAKING) as life:
        with pytest.raises(Killed):
            await life.do(second)
    async with Life(world, die_in=state) as life:
        with pytest.raises(Killed):
            await life.until(S.IDLE, 2)
    async with Life(world) as life:
        await life.until(S.IDLE, 2)
        assert life.chain == afterwards
        assert life.serves == ONE
        assert life.journal.receipts()[-1].outcome == S.ROLLED_BACK


async def test_bytes_fetched_before_a_kill_are_in_the_receipt_and_not_fetched_again(
    world: World,
) -> None:
    second = world.publish("2")
    async with Life(world, die_in=S.STAGING) as life:
        with pytest.raises(Killed):
            await life.do(second)
    sent = world.server.sent_bytes
    async with Life(world) as life:
        await life.until(S.IDLE, 2)
        receipt = life.journal.receipts()[-1]
    assert world.server.sent_bytes == sent
    assert receipt.received_bytes == sent


async def test_an_interrupted_update_that_is_given_again_downloads_nothing(world: World) -> None:
    second = world.publish("2")
    async with Life(world, die_in=S.SOAKING) as life:
        with pytest.raises(Killed):
            await life.do(second)
    sent = world.server.sent_bytes
    async with Life(world) as life:
        again = Assignment(generation=3, release=TWO, manifest_sha256=second.manifest_sha256)
        receipt = await life.do(again)
        assert life.serves == TWO
    manifest = len(world.server.chunks[bytes.fromhex(second.manifest_sha256)])
    assert world.server.sent_bytes - sent == receipt.received_bytes == manifest


async def test_a_box_that_is_killed_in_the_same_state_forever_gives_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.update.machine.MAX_STORES", 3)
    await _commit_first(world)
    second = world.publish("2")
    async with Life(world, die_in=S.PLANNING) as life:
        with pytest.raises(Killed):
            await life.do(second)
    for _ in range(2):
        async with Life(world, die_in=S.PLANNING) as life:
            with pytest.raises(Killed):
                await life.until(S.IDLE, 2)
    async with Life(world) as life:
        await life.until(S.IDLE, 2)
        receipt = life.journal.receipts()[-1]
        assert (receipt.outcome, receipt.reason) == (S.REJECTED, "loop")
        assert life.serves == ONE


async def _commit_first(world: World) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))


# -- booting


async def test_a_boot_serves_the_current_release_without_any_network(world: World) -> None:
    await _commit_first(world)
    world.publisher.reachable.clear()
    world.server.chunks.clear()
    async with Life(world) as life:
        life.engine.assign(Assignment(generation=2, release=TWO, manifest_sha256="0" * 64))
        await life.until(S.VERIFYING, 2)
        assert await answer(life) == "This is release 1"


async def test_a_current_release_that_will_not_load_falls_to_last_good(world: World) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
        first = life.files()
        await life.do(world.publish("2"))
        (second,) = life.files() - first
    (world.root / "store" / "files" / second).unlink()
    async with Life(world) as life:
        receipt = await life.do(world.publish("3"))
        assert receipt.last_good_release == ONE
    async with Life(world) as life:
        await life.until(S.IDLE, 3)
        assert life.pointers == ("", THREE, ONE)


# -- newer assignments


async def test_a_newer_assignment_supersedes_a_candidate_in_probation(world: World) -> None:
    async with Life(world) as life:
        slow = world.publish("1", FakeModel(token_seconds=0.5))
        life.engine.assign(slow)
        await life.until(S.PROBATION, 1)
        await life.do(world.publish("2"))
        assert life.serves == TWO
        assert [receipt.generation for receipt in life.journal.receipts()] == [2]
        assert len(life.supervisor._workers) == 1
        assert len(life.files()) == 1


# -- choosing


async def test_a_variant_that_disappoints_makes_the_box_try_the_next(world: World) -> None:
    # v0 is smaller and therefore predicted to be faster; v1 is faster.
    slow = FakeModel(token_seconds=0.02, quantization="quarter")
    fast = FakeModel(padding="x" * 100)
    policy = SelectionPolicy(objective=Objective.TOKENS_PER_SECOND, min_tokens_per_second=200.0)
    async with Life(world) as life:
        receipt = await life.do(world.publish("1", slow, fast, policy=policy))
        assert life.chain == [
            *WORKING[:5],
            S.FETCHING,
            S.STAGING,
            S.PROBATION,
            *HAPPY[5:],
        ]
        assert len(life.files()) == 1
    (decision,) = receipt.decisions
    assert decision.chosen_variant == "v1"
    assert "200 asked" in decision.candidate("v0").reason


async def test_a_variant_that_will_not_load_makes_the_box_try_the_next(world: World) -> None:
    broken = FakeModel(faults=Faults(on_load="error"))
    sound = FakeModel(padding="x" * 100)
    async with Life(world) as life:
        receipt = await life.do(world.publish("1", broken, sound))
    assert receipt.outcome == S.COMMITTED
    assert receipt.decisions[0].chosen_variant == "v1"
    assert "did not load" in receipt.decisions[0].candidate("v0").reason


async def test_every_variant_failing_its_checks_rejects_with_each_reason(world: World) -> None:
    models = [FakeModel(faults=Faults(wrong_outputs=True), padding="x" * size) for size in (0, 9)]
    async with Life(world) as life:
        receipt = await life.do(world.publish("1", *models))
    assert receipt.reason == "probation_failed"
    assert "v0" in receipt.detail
    assert "v1" in receipt.detail


async def test_without_room_for_both_the_live_release_is_drained_first(world: World) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
        world.free_memory_bytes = 0
        receipt = await life.do(world.publish("2"))
        assert life.serves == TWO
    assert "drained first" in receipt.detail


async def test_a_candidate_that_fails_after_draining_gives_the_live_release_back(
    world: World,
) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
        world.free_memory_bytes = 0
        receipt = await life.do(staged(Faults(wrong_outputs=True))(world))
        assert receipt.outcome == S.REJECTED
        assert await answer(life) == "This is release 1"


async def test_when_what_was_drained_does_not_load_again_the_last_good_serves_and_it_is_said(
    world: World,
) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
        ones = life.files()
        await life.do(world.publish("2"))
        for lost in life.files() - ones:
            (world.root / "store" / "files" / lost).unlink()
        world.free_memory_bytes = 0
        receipt = await life.do(world.publish("3", FakeModel(faults=Faults(wrong_outputs=True))))
        assert await answer(life) == "This is release 1"
        assert life.pointers == ("", ONE, "")
    assert (receipt.outcome, receipt.current_release) == (S.REJECTED, ONE)
    assert f"{ONE} serves: {TWO} did not load: a file of {TWO} is missing" in receipt.detail


async def test_when_nothing_loads_again_requests_are_told_at_once_and_the_receipt_says_so(
    world: World,
) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
        for lost in life.files():
            (world.root / "store" / "files" / lost).unlink()
        world.free_memory_bytes = 0
        receipt = await life.do(staged(Faults(wrong_outputs=True))(world))
        with pytest.raises(NothingServedError, match="serves no release"):
            await answer(life)
    assert f"no release serves: {ONE} did not load" in receipt.detail


async def test_a_newer_assignment_while_the_live_release_drains_leaves_it_serving(
    world: World,
) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
        world.free_memory_bytes = 0
        async with life.serving.lease("assistant") as worker:
            life.engine.assign(world.publish("2"))
            await eventually(lambda: life.serving.deployment is None)
            world.free_memory_bytes = 1 << 40
            life.engine.assign(world.publish("3"))
            await eventually(lambda: life.serving.deployment is not None)
            assert worker.stats().live
        await life.until(S.IDLE, 3)
        assert life.serves == THREE
        assert len(life.supervisor._workers) == 1


async def test_a_journal_that_cannot_be_written_is_told_and_what_serves_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "JOURNAL_RETRY_SECONDS", 0.01)
    async with Life(world) as life:
        await life.do(world.publish("1"))
        write = life._record

        def full(**_: object) -> None:
            raise JournalError("the journal: disk is full", advice="Check the disk.")

        life._record = full
        life.engine.assign(world.publish("2"))
        await eventually(lambda: "disk is full Check the disk" in life.engine.status().detail)
        assert await answer(life) == "This is release 1"
        life._record = write
        await life.until(S.IDLE, 2)
        assert life.engine.status().detail == ""
        assert life.serves == TWO


async def test_a_chat_template_that_always_fails_is_rejected_in_probation(world: World) -> None:
    async with Life(world) as life:
        await life.do(world.publish("1"))
        broken = FakeModel(chat_template="{% generation %}", reply="This is release 2. ")
        receipt = await life.do(world.publish("2", broken))
        assert (receipt.outcome, receipt.reason) == (S.REJECTED, "probation_failed")
        assert "chat failed" in receipt.detail
        assert await answer(life) == "This is release 1"


async def test_a_model_whose_inputs_are_unknown_is_deployed_unmeasured(world: World) -> None:
    model = FakeModel(task=Task.TENSOR, faults=Faults(min_rows=3))
    async with Life(world) as life:
        receipt = await life.do(world.publish("1", model, checks=()))
    assert receipt.outcome == S.COMMITTED
    (decision,) = receipt.decisions
    assert (decision.chosen_variant, receipt.checks[0].outcome) == ("v0", "unmeasured")
    assert "speed unmeasured" in decision.candidate("v0").reason


async def test_a_composed_route_that_always_fails_is_rejected_in_probation(world: World) -> None:
    """Each of its models passes alone."""
    models = {
        "chat": FakeModel(),
        "embed": FakeModel(task=Task.EMBEDDING),
        "classify": FakeModel(task=Task.TENSOR, width=8),
    }
    world.model_memory_bytes = 1 << 30
    assignment = world.publish("1")
    release = decode_release(world.server.chunks[bytes.fromhex(assignment.manifest_sha256)])
    components = tuple(
        Component(
            slot=slot,
            model=msgspec.structs.replace(
                release.components[0].model,
                task=model.task,
                variants=(world.variant(f"{slot}-v0", model),),
            ),
        )
        for slot, model in models.items()
    )
    targets = tuple(Target(slot="chat") for _ in range(8))
    route = Route(name="topics", pipeline=Pipeline("embed", "classify", "input", "output", targets))
    async with Life(world) as life:
        receipt = await life.do(
            world.listed(msgspec.structs.replace(release, components=components, routes=(route,)))
        )
    assert (receipt.outcome, receipt.reason) == (S.REJECTED, "probation_failed")
    assert "route topics failed" in receipt.detail
    assert [each.outcome for each in receipt.checks if each.name == "route topics"] == ["failed"]


async def test_two_releases_that_exceed_the_budget_together_do_not_run_beside_each_other(
    world: World,
) -> None:
    world.model_memory_bytes = PROCESS_BYTES["fake"] + 12 * MIB
    async with Life(world) as life:
        most = 0

        def look() -> None:
            nonlocal most
            most = max(most, len(life.supervisor._workers))

        life.listeners.append(look)
        await life.do(world.publish("1"))
        receipt = await life.do(world.publish("2"))
        assert "drained first" in receipt.detail
        assert (life.serves, most) == (TWO, 1)
        world.model_memory_bytes = 2 * world.model_memory_bytes
        receipt = await life.do(world.publish("3"))
        assert "drained first" not in receipt.detail
        assert most == 2


async def test_a_process_that_outgrows_the_budget_is_not_served(world: World) -> None:
    """Its estimate promises 1 MiB, it takes 40."""
    world.model_memory_bytes = PROCESS_BYTES["fake"] + 12 * MIB
    async with Life(world) as life:
        receipt = await life.do(world.publish("1", FakeModel(allocate_bytes=40 * MIB)))
    assert (receipt.outcome, receipt.reason) == (S.REJECTED, "load_out_of_memory")


async def test_a_changed_budget_makes_a_proven_release_be_planned_anew(world: World) -> None:
    async with Life(world) as life:
        big = FakeModel(memory_bytes=32 * MIB, allocate_bytes=32 * MIB)
        small = FakeModel(memory_bytes=2 * MIB, padding="x" * 100)
        first = world.publish("1", big, small)
        assert (await life.do(first)).decisions[0].chosen_variant == "v0"
        await life.do(world.publish("2"))
        world.model_memory_bytes = PROCESS_BYTES["fake"] + 16 * MIB
        again = Assignment(generation=3, release=ONE, manifest_sha256=first.manifest_sha256)
        receipt = await life.do(again)
        assert receipt.decisions[0].chosen_variant == "v1"
        assert "proven here before" not in receipt.detail
