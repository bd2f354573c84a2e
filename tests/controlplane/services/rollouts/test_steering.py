"""Commands of operators are carried out once and atomically, or refused with a reason."""

import pytest

from controlplane.errors import (
    ConflictError,
    DeviceBusyError,
    InvalidSelectorError,
    InvalidStrategyError,
    NotFoundError,
    StaleError,
)
from controlplane.rollouts.machine import MemberState, RolloutState
from controlplane.store import audit
from controlplane.store import rollouts as stored
from controlplane.store.paging import PageRequest

from .conftest import NEW, OLD, OPERATOR, STRATEGY, World


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"release": "acme/assistant@9"}, NotFoundError),
        ({"selector": "site=attic"}, ConflictError),
        ({"selector": "site=("}, InvalidSelectorError),
        ({"strategy": "waves: []"}, InvalidStrategyError),
    ],
)
async def test_a_start_that_cannot_be_is_refused_whole(
    world: World, change: dict[str, str], error: type[Exception]
) -> None:
    given = {"release": NEW, "selector": "site=lab", "strategy": STRATEGY, **change}
    with pytest.raises(error):
        await world.service.start(OPERATOR, "r", **given)
    assert (await world.service.page(PageRequest())).items == ()


async def test_a_busy_device_is_refused_by_name_until_its_rollout_ends(world: World) -> None:
    first = await world.start()
    with pytest.raises(DeviceBusyError, match=f"'box-1' is already part of rollout {first}"):
        await world.start(selector="", request="start-2")
    await world.service.abort(OPERATOR, "abort-1", first, "")
    await world.start(request="start-3")


async def test_undoing_waits_for_a_rollout_that_has_not_reached_the_device_yet(
    world: World,
) -> None:
    first = await world.start()
    for _ in range(3):
        await world.tick(5)
        await world.work()
    await world.tick()
    second = await world.start(request="start-2")
    with pytest.raises(DeviceBusyError, match=second):
        await world.service.roll_back(OPERATOR, "back-1", first, "")
    await world.service.abort(OPERATOR, "abort-1", second, "")
    view = await world.service.roll_back(OPERATOR, "back-2", first, "worse")
    assert view.rollout.state is RolloutState.ROLLING_BACK
    await world.tick()
    await world.work()
    await world.tick()
    view = await world.service.get(first)
    assert view.rollout.state is RolloutState.ROLLED_BACK
    # The canary of the second rollout has the same release, so undoing the first includes it.
    assert {member.state for member in view.rollout.members.values()} == {MemberState.REVERTED}
    wanted = sorted(release for _, release, _ in (await world.wanted()).values())
    assert wanted == ["", OLD, OLD, OLD]


async def test_a_repeated_request_starts_one_rollout_and_is_audited_once(world: World) -> None:
    assert await world.start() == await world.start()
    assert len((await world.service.page(PageRequest())).items) == 1
    async with world.database.read() as tx:
        events = (await audit.page(tx, PageRequest())).items
    assert [event.action for event in events] == ["rollout.start"]


async def test_pause_and_resume(world: World) -> None:
    rollout_id = await world.start()
    await world.tick()
    view = await world.service.pause(OPERATOR, "p", rollout_id, "lunch")
    assert (view.rollout.state, view.rollout.reason) == (RolloutState.PAUSED, "lunch")
    await world.work()
    await world.tick(60)
    assert (await world.service.get(rollout_id)).rollout.state is RolloutState.PAUSED
    view = await world.service.resume(OPERATOR, "r", rollout_id)
    assert view.rollout.state is RolloutState.RUNNING
    with pytest.raises(ConflictError, match="cannot be resumed"):
        await world.service.resume(OPERATOR, "r2", rollout_id)


async def test_the_list_has_numbers_without_devices(world: World) -> None:
    await world.start()
    await world.tick()
    await world.work()
    (listed,) = (await world.service.page(PageRequest())).items
    assert listed.rollout.members == {}
    assert [(c.targeted, c.reachable, c.succeeded) for c in listed.counts] == [(1, 1, 1), (2, 2, 0)]


async def test_a_change_made_on_an_old_view_is_refused(world: World) -> None:
    rollout_id = await world.start()
    async with world.database.read() as tx:
        old = await stored.get(tx, rollout_id)
    await world.service.pause(OPERATOR, "p", rollout_id, "")
    async with world.database.write() as tx:
        with pytest.raises(StaleError):
            await stored.save(tx, old, old.rollout)


async def test_an_unknown_rollout_is_not_found(world: World) -> None:
    with pytest.raises(NotFoundError, match="no rollout 'x'"):
        await world.service.get("x")
