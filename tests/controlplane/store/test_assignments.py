from datetime import datetime, timedelta

import pytest

from controlplane.errors import StaleError
from controlplane.store import assignments, devices
from controlplane.store.assignments import NOTHING, Assignment, Change
from controlplane.store.database import Database
from controlplane.store.devices import Device

FIRST, SECOND = Assignment(1, "acme/a@1", "a" * 64), Assignment(2, "acme/a@2", "b" * 64)


@pytest.fixture
async def fleet(database: Database, now: datetime) -> Database:
    """Three devices without assignments."""
    async with database.write() as tx:
        for name in ("one", "two", "three"):
            await devices.add(
                tx,
                Device(
                    id=name,
                    name=name,
                    enrolled_at=now,
                    public_key=b"",
                    certificate_serial=name,
                    certificate_expires_at=now + timedelta(days=1),
                ),
            )
    return database


async def test_a_batch_of_first_and_later_assignments(fleet: Database, now: datetime) -> None:
    async with fleet.write() as tx:
        await assignments.replace(tx, [Change("one", 0, FIRST)], now)
        await assignments.replace(tx, [Change("one", 1, SECOND), Change("two", 0, FIRST)], now)
    async with fleet.read() as tx:
        found = [(await assignments.get(tx, name))[0] for name in ("one", "two", "three")]
    assert found == [SECOND, FIRST, NOTHING]


@pytest.mark.parametrize(
    "late", [Change("one", 0, SECOND), Change("one", 5, SECOND), Change("two", 5, SECOND)]
)
async def test_a_change_that_comes_too_late_undoes_its_whole_batch(
    fleet: Database, now: datetime, late: Change
) -> None:
    async with fleet.write() as tx:
        await assignments.replace(tx, [Change("one", 0, FIRST)], now)
    with pytest.raises(StaleError, match=f"device {late.device_id} "):
        async with fleet.write() as tx:
            await assignments.replace(tx, [Change("three", 0, FIRST), late], now)
    async with fleet.read() as tx:
        assert (await assignments.get(tx, "one"))[0] == FIRST
        assert await assignments.get(tx, "three") == (NOTHING, None)


async def test_nothing_to_change_is_no_change(fleet: Database, now: datetime) -> None:
    """An empty batch must not become a statement for every row, or an error."""
    async with fleet.write() as tx:
        await assignments.replace(tx, [Change("one", 0, FIRST)], now)
    async with fleet.write() as tx:
        await assignments.replace(tx, [], now + timedelta(hours=1))
    async with fleet.read() as tx:
        assert await assignments.get(tx, "one") == (FIRST, now)
        assert await assignments.get(tx, "two") == (NOTHING, None)
