from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from controlplane.errors import NotFoundError, StaleError
from controlplane.rollouts.gates import GateOutcome, Verdict
from controlplane.rollouts.machine import MemberState, RolloutState, WaveState
from controlplane.rollouts.records import Member, Rollout, Wave
from controlplane.rollouts.strategy import parse_strategy
from controlplane.store import devices, rollout_devices, rollouts
from controlplane.store.database import Database
from controlplane.store.devices import Device
from controlplane.store.paging import PageRequest


def device(name: str, now: datetime) -> Device:
    return Device(
        id=f"id-{name}",
        name=name,
        enrolled_at=now,
        public_key=b"",
        certificate_serial=name,
        certificate_expires_at=now + timedelta(days=1),
    )


def rollout(rollout_id: str, now: datetime, *names: str) -> Rollout:
    return Rollout(
        id=rollout_id,
        release="acme/a@1",
        selector="site=lab",
        strategy=parse_strategy("waves: [{name: all, percent: 100, soak_seconds: 2}]"),
        created_at=now,
        created_by="somebody",
        updated_at=now,
        waves=(Wave(name="all"),),
        members={f"id-{name}": Member(device_id=f"id-{name}", name=name, wave=0) for name in names},
    )


@pytest.fixture
async def stored(database: Database, now: datetime) -> Database:
    """One rollout over two of three devices."""
    async with database.write() as tx:
        for name in ("one", "two", "three"):
            await devices.add(tx, device(name, now))
        await rollouts.add(tx, rollout("r1", now, "one", "two"))
    return database


async def test_a_rollout_comes_back_as_it_was_saved(stored: Database, now: datetime) -> None:
    async with stored.read() as tx:
        seen = await rollouts.get(tx, "r1")
    assert seen.rollout == rollout("r1", now, "one", "two")
    changed = replace(
        seen.rollout,
        state=RolloutState.PAUSED,
        reason="why",
        updated_at=now + timedelta(seconds=1),
        waves=(
            Wave(
                name="all",
                state=WaveState.FAILED,
                started_at=now,
                soak_until=now,
                acknowledged=2,
                verdicts=(Verdict("failure", GateOutcome.FAILED, "detail"),),
            ),
        ),
        members={
            **seen.rollout.members,
            "id-one": Member(
                device_id="id-one",
                name="one",
                wave=0,
                state=MemberState.FAILED,
                succeeded=False,
                detail="d",
                previous_release="acme/a@0",
                generation=3,
                assigned_at=now,
                reachable_at_assignment=True,
                sent_back=True,
                bytes_downloaded=1 << 40,
                switch_seconds=0.5,
            ),
        },
    )
    async with stored.write() as tx:
        await rollouts.save(tx, seen, changed)
    async with stored.read() as tx:
        again = await rollouts.get(tx, "r1")
        assert again.rollout == changed
        assert again.version == seen.version + 1
        assert await rollout_devices.rollout_of(tx, "id-one", 3) == "r1"
        assert await rollout_devices.rollout_of(tx, "id-one", 2) is None


async def test_one_of_two_who_saw_the_same_version_is_refused(stored: Database) -> None:
    async with stored.read() as tx:
        seen = await rollouts.get(tx, "r1")
    async with stored.write() as tx:
        await rollouts.save(tx, seen, replace(seen.rollout, reason="first"))
    with pytest.raises(StaleError, match="r1 changed meanwhile"):
        async with stored.write() as tx:
            await rollouts.save(tx, seen, replace(seen.rollout, reason="second"))


async def test_a_receipt_makes_a_decision_on_the_old_view_stale(
    stored: Database, now: datetime
) -> None:
    async with stored.read() as tx:
        seen = await rollouts.get(tx, "r1")
    async with stored.write() as tx:
        await rollouts.change_member(
            tx, "r1", "id-one", lambda member: replace(member, detail="reported"), now
        )
    with pytest.raises(StaleError):
        async with stored.write() as tx:
            await rollouts.save(tx, seen, seen.rollout)
    async with stored.read() as tx:
        assert (await rollouts.get(tx, "r1")).rollout.members["id-one"].detail == "reported"


async def test_finished_and_paused_rollouts_do_not_move_but_only_finished_ones_free_devices(
    stored: Database,
) -> None:
    async def become(state: RolloutState) -> None:
        async with stored.write() as tx:
            seen = await rollouts.get(tx, "r1")
            await rollouts.save(tx, seen, replace(seen.rollout, state=state))

    async def look() -> tuple[list[str], set[str]]:
        async with stored.read() as tx:
            assert await rollouts.busy(tx, besides="r1") == {}
            return await rollouts.moving(tx), set(await rollouts.busy(tx))

    taken = {"id-one", "id-two"}
    assert await look() == (["r1"], taken)
    await become(RolloutState.PAUSED)
    assert await look() == ([], taken)
    await become(RolloutState.ROLLING_BACK)
    assert await look() == (["r1"], taken)
    await become(RolloutState.SUCCEEDED)
    assert await look() == ([], set())


async def test_pages_are_newest_first_with_numbers_per_wave(
    stored: Database, now: datetime
) -> None:
    async with stored.write() as tx:
        await rollouts.add(tx, rollout("r2", now, "three"))
        await rollouts.change_member(
            tx, "r1", "id-two", lambda member: replace(member, succeeded=False), now
        )
    async with stored.read() as tx:
        first = await rollouts.page(tx, PageRequest(size=1), now)
        assert [one.rollout.id for one in first.items] == ["r2"]
        assert first.next_token
        (listed,) = (await rollouts.page(tx, PageRequest(after="r2"), now)).items
    (counts,) = listed.counts
    assert (counts.targeted, counts.reported, counts.succeeded, counts.failed) == (2, 1, 0, 1)


async def test_what_is_not_there_is_not_found(stored: Database, now: datetime) -> None:
    async with stored.write() as tx:
        with pytest.raises(NotFoundError):
            await rollouts.get(tx, "r9")
        with pytest.raises(NotFoundError):
            await rollouts.change_member(tx, "r1", "id-three", lambda member: member, now)
