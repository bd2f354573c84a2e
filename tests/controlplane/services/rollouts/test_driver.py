"""The rollout driver: stored state, signals, and recovery after a crash."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest

from controlplane.rollouts.commands import UpdateResult
from controlplane.rollouts.machine import MemberState, RolloutState
from controlplane.services.signals import device_key
from controlplane.store import assignments, devices, sessions
from controlplane.store.assignments import Change
from controlplane.store.database import Transaction
from controlplane.store.devices import DeviceState
from controlplane.store.paging import PageRequest, page_request

from .conftest import NEW, OLD, OPERATOR, World


class PowerCut(BaseException):
    """A BaseException, so that no handler of the code under test catches it."""


async def test_a_rollout_from_start_to_success(world: World) -> None:
    rollout_id = await world.start()
    await world.tick()
    view = await world.service.get(rollout_id)
    assert view.rollout.state is RolloutState.RUNNING
    assert view.rollout.created_by == OPERATOR.actor
    assert [counts.targeted for counts in view.counts] == [1, 2]
    assert sorted((await world.wanted()).values()) == [
        (0, "", ""),
        (0, "", ""),
        (0, "", ""),
        (1, NEW, "b"),
    ]
    await world.work()
    await world.tick()
    await world.tick(5)
    await world.work()
    await world.tick()
    view = await world.service.get(rollout_id)
    assert view.rollout.state is RolloutState.SUCCEEDED
    assert [counts.succeeded for counts in view.counts] == [1, 2]
    for member in view.rollout.members.values():
        assert member.previous_release == OLD
        assert (member.bytes_downloaded, member.switch_seconds) == (9, 0.25)
    assert (await world.wanted())["elsewhere"] == (0, "", "")


async def test_a_failed_canary_is_sent_back_with_the_old_digest(world: World) -> None:
    rollout_id = await world.start()
    await world.tick()
    await world.work(good=False)
    await world.tick()
    assert (2, OLD, "a") in (await world.wanted()).values()
    await world.work()
    await world.tick()
    view = await world.service.get(rollout_id)
    assert view.rollout.state is RolloutState.ROLLED_BACK
    assert "wave canary failed" in view.rollout.reason
    assert [counts.failed for counts in view.counts] == [1, 0]


async def test_a_server_that_dies_anywhere_goes_on(world: World) -> None:
    rollout_id = await world.start()
    for _ in range(4):
        world.restart()
        await world.tick(5)
        world.restart()
        await world.work()
    world.restart()
    await world.tick()
    assert (await world.service.get(rollout_id)).rollout.state is RolloutState.SUCCEEDED
    generations = {
        generation for generation, release, _ in (await world.wanted()).values() if release
    }
    assert generations == {1}


async def test_a_crash_before_the_commit_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(*_: object) -> None:
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(assignments, "replace", die)
        with pytest.raises(PowerCut):
            await world.start()
    (listed,) = (await world.service.page(PageRequest())).items
    assert listed.rollout.state is RolloutState.SCHEDULED
    world.restart()
    await world.tick()
    view = await world.service.get(listed.rollout.id)
    assert view.rollout.state is RolloutState.RUNNING
    assert sum(generation for generation, _, _ in (await world.wanted()).values()) == 1


async def test_devices_and_watchers_are_woken_after_the_commit(world: World) -> None:
    # Starting assigns the canary at once, which may be any of the boxes.
    with world.signals.subscribe(device_key("id-box-1")) as woken:
        rollout_id = await world.start()

        async def watch() -> list[str]:
            return [view.rollout.state async for view in world.service.watch(rollout_id)]

        watcher = asyncio.create_task(watch())
        await world.tick()
        for _ in range(2):
            await world.work()
            await world.tick(5)
            await asyncio.sleep(0)
        await world.work()
        await world.tick()
        assert woken.is_set()
    seen = await asyncio.wait_for(watcher, 10)
    assert seen[-2:] == ["running", "succeeded"]


async def test_a_device_that_claims_to_run_what_nobody_published_blocks_nothing(
    world: World,
) -> None:
    await world.enroll("liar", current_release="evil/model@1", site="lab")
    rollout_id = await world.start()
    for _ in range(3):
        await world.tick(5)
        await world.work()
    await world.service.roll_back(OPERATOR, "back", rollout_id, "")
    await world.tick()
    assert (await world.wanted())["liar"] == (2, "", "")


async def test_one_rollout_that_cannot_go_on_does_not_hold_up_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.start()
    other = await world.start(selector="site=field", request="start-2")
    real = assignments.replace

    async def fail(tx: Transaction, changes: Sequence[Change], now: datetime) -> None:
        if changes[0].device_id != "id-elsewhere":
            raise OSError("disk")
        await real(tx, changes, now)

    monkeypatch.setattr(assignments, "replace", fail)
    await world.tick()
    assert (await world.service.get(other)).rollout.state is RolloutState.RUNNING


async def test_an_interrupted_update_is_given_again_under_a_new_generation(world: World) -> None:
    rollout_id = await world.start()
    await world.tick()
    (canary,) = [name for name, wanted in (await world.wanted()).items() if wanted[0]]
    interrupted = UpdateResult(1, committed=False, detail="stopped", interrupted=True)
    async with world.database.write() as tx:
        await world.driver.settle(tx, f"id-{canary}", interrupted, world.now)
    await world.tick()
    assert (await world.wanted())[canary] == (2, NEW, "b")
    member = (await world.service.get(rollout_id)).rollout.members[f"id-{canary}"]
    assert (member.state, member.retries) == (MemberState.ASSIGNED, 1)
    assert member.previous_release == OLD


async def test_a_receipt_that_no_rollout_asked_for_is_left_alone(world: World) -> None:
    rollout_id = await world.start()
    before = await world.service.get(rollout_id), await world.wanted()
    async with world.database.write() as tx:
        await world.driver.settle(tx, "id-box-1", UpdateResult(99, committed=True), world.now)
    assert (await world.service.get(rollout_id), await world.wanted()) == before


@pytest.mark.parametrize("away_seconds", [0, 29, 31])
async def test_show_and_list_count_reachable_devices_alike(world: World, away_seconds: int) -> None:
    """Active with a stream, or within the grace of 30 s after it ended."""
    rollout_id = await world.start()
    async with world.database.write() as tx:
        assert await sessions.leave(tx, "id-box-1", "s", world.now)
        banned = await devices.get(tx, "id-box-2")
        await devices.set_state(tx, banned, DeviceState.BANNED, "")
    world.now += timedelta(seconds=away_seconds)
    shown = (await world.service.get(rollout_id)).counts
    (listed,) = (await world.service.page(page_request(10, ""))).items
    assert [one.reachable for one in listed.counts] == [one.reachable for one in shown]
    # box-3 has its stream.
    assert sum(one.reachable for one in shown) == (2 if away_seconds <= 30 else 1)
