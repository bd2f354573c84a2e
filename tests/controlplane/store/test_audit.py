"""The audit log: an altered, missing or added event breaks the chain."""

from datetime import datetime

import pytest
from sqlalchemy import delete, update

from controlplane.store import audit
from controlplane.store.audit import AUDIT
from controlplane.store.database import Database


@pytest.fixture
async def log(database: Database, now: datetime) -> Database:
    for number in range(5):
        async with database.write() as tx:
            await audit.append(tx, at=now, actor="me", action="do", subject=f"thing {number}")
    return database


async def test_an_untouched_log_verifies(log: Database) -> None:
    async with log.read() as tx:
        assert await audit.verify(tx) is None


async def test_an_altered_event_is_found(log: Database) -> None:
    async with log.write() as tx:
        await tx.execute(update(AUDIT).where(AUDIT.c.sequence == 3).values(actor="you"))
    async with log.read() as tx:
        assert await audit.verify(tx) == 3


async def test_a_removed_event_is_found(log: Database) -> None:
    async with log.write() as tx:
        await tx.execute(delete(AUDIT).where(AUDIT.c.sequence == 2))
    async with log.read() as tx:
        assert await audit.verify(tx) == 2


async def test_what_is_too_long_is_cut(database: Database, now: datetime) -> None:
    async with database.write() as tx:
        await audit.append(
            tx, at=now, actor="a" * 999, action="b" * 999, subject="c" * 999, detail="d" * 99999
        )
    async with database.read() as tx:
        assert await audit.verify(tx) is None
