"""Transactions are atomic, writers take turns, and signals follow the commit."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from controlplane.errors import StaleError
from controlplane.store import api_tokens, requests
from controlplane.store.api_tokens import API_TOKENS, ApiToken
from controlplane.store.database import Database, embedded_url, open_database
from controlplane.store.requests import DoneRequest


def token(token_id: str, created_at: datetime) -> ApiToken:
    return ApiToken(
        id=token_id,
        name="ci",
        role="viewer",
        secret_sha256=token_id,
        created_at=created_at,
        expires_at=None,
        revoked=False,
    )


async def test_a_transaction_that_raises_leaves_nothing(database: Database, now: datetime) -> None:
    signals: list[str] = []

    async def cut_off() -> None:
        async with database.write() as tx:
            await api_tokens.add(tx, token("a", now))
            tx.after_commit(lambda: signals.append("committed"))
            raise RuntimeError("cut off")

    with pytest.raises(RuntimeError):
        await cut_off()
    async with database.read() as tx:
        assert not await api_tokens.any_exists(tx)
    assert signals == []


async def test_signals_go_out_after_the_commit(database: Database, now: datetime) -> None:
    signals: list[str] = []
    async with database.write() as tx:
        await api_tokens.add(tx, token("a", now))
        tx.after_commit(lambda: signals.append("committed"))
        assert signals == []
    assert signals == ["committed"]


async def test_what_a_reader_changes_is_not_kept(database: Database, now: datetime) -> None:
    async with database.read() as tx:
        await api_tokens.add(tx, token("a", now))
    async with database.read() as tx:
        assert not await api_tokens.any_exists(tx)


async def test_a_reader_sees_one_snapshot(database: Database, now: datetime) -> None:
    """Services read several tables in one transaction and combine the rows."""
    async with database.write() as tx:
        await api_tokens.add(tx, token("a", now))
    async with database.read() as tx:
        before = await tx.all(select(API_TOKENS.c.id))
        async with database.write() as other:
            await api_tokens.add(other, token("b", now))
            await api_tokens.revoke(other, "a")
        assert await tx.all(select(API_TOKENS.c.id)) == before
        assert not (await api_tokens.get(tx, "a")).revoked
    async with database.read() as tx:
        assert (await api_tokens.get(tx, "a")).revoked


async def test_a_writer_sees_what_others_committed_meanwhile(
    database: Database, now: datetime
) -> None:
    """A pooled connection that was a reader's must not keep the reader's isolation."""
    async with database.read() as tx:
        assert not await api_tokens.any_exists(tx)
    async with database.write() as tx:
        await api_tokens.add(tx, token("a", now))
    async with database.write() as tx:
        assert await api_tokens.any_exists(tx)
        if tx.dialect == "postgresql":
            level = await tx.first(text("SHOW transaction_isolation"))
            assert level is not None
            assert level[0] == "read committed"


async def test_many_writers_at_once_all_get_their_turn(database: Database, now: datetime) -> None:
    async def write(number: int) -> None:
        async with database.write() as tx:
            seen = (await tx.all(select(func.count()).select_from(API_TOKENS)))[0][0]
            await asyncio.sleep(0)
            await api_tokens.add(tx, token(f"{number}-{seen}", now))

    await asyncio.gather(*(write(number) for number in range(12)))
    async with database.read() as tx:
        assert (await tx.all(select(func.count()).select_from(API_TOKENS)))[0][0] == 12


async def test_the_embedded_database_flushes_every_commit(tmp_path: Path) -> None:
    """SQLite's NORMAL would lose acknowledged commits of the WAL in a power cut; 2 is FULL."""
    database = open_database(embedded_url(tmp_path / "flotilla.db"))
    async with database.read() as reader, database.write() as writer:
        for tx in (reader, writer):
            assert (await tx.first(text("PRAGMA synchronous"))) == (2,)
            assert (await tx.first(text("PRAGMA journal_mode"))) == ("wal",)
    await database.close()


async def test_moments_come_back_in_utc(database: Database) -> None:
    elsewhere = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    async with database.write() as tx:
        await api_tokens.add(tx, token("a", elsewhere))
    async with database.read() as tx:
        stored = (await api_tokens.get(tx, "a")).created_at
    assert stored == elsewhere
    assert stored.utcoffset() == timedelta()


async def test_a_moment_without_a_zone_is_refused(database: Database) -> None:
    naive = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
    async with database.write() as tx:
        with pytest.raises(Exception, match="has no time zone"):
            await api_tokens.add(tx, token("a", naive))


async def test_requests_are_remembered_until_they_are_old(
    database: Database, now: datetime
) -> None:
    done = DoneRequest("device.label", "f" * 64, "box")
    async with database.write() as tx:
        await requests.remember(tx, "me", "r1", done, now)
    async with database.write() as tx:
        assert await requests.find(tx, "me", "r1") == done
        assert await requests.find(tx, "you", "r1") is None
        assert await requests.forget(tx, now) == 0
        assert await requests.forget(tx, now + timedelta(seconds=1)) == 1
        assert await requests.find(tx, "me", "r1") is None


async def test_a_request_that_another_replica_carried_out_is_stale(
    database: Database, now: datetime
) -> None:
    async with database.write() as tx:
        await requests.remember(tx, "me", "r1", DoneRequest("do", "f", "one"), now)
        with pytest.raises(StaleError):
            await requests.remember(tx, "me", "r1", DoneRequest("do", "f", "two"), now)
