"""The schema goes up and down under the traffic of a previous release, on both databases."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from databases import fresh_postgres
from sqlalchemy import URL, Connection, MetaData, Table, insert, select, text, update

from controlplane.errors import InvalidInputError
from controlplane.store.database import Database, embedded_url, open_database
from controlplane.store.migrate import downgrade, migrate, revision, revisions
from controlplane.store.tables import METADATA

# The last migration of the previous release, 0.1.0.
PREVIOUS = "0005"
# Only a failure takes this long.
PATIENCE_SECONDS = 30.0
WORKERS = 3


@pytest.fixture(params=["sqlite", "postgres"])
async def url(
    request: pytest.FixtureRequest, tmp_path: Path, require: Callable[..., None]
) -> AsyncIterator[URL | str]:
    if request.param == "sqlite":
        yield embedded_url(tmp_path / "flotilla.db")
        return
    async with fresh_postgres(require) as found:
        yield found


@contextlib.asynccontextmanager
async def opened(url: URL | str) -> AsyncIterator[Database]:
    database = open_database(url)
    try:
        yield database
    finally:
        await database.close()


def values_for(table: Table, given: dict[str, Any]) -> dict[str, Any]:
    """Add a value of the right type for every column that may not be null."""
    fillers: dict[type, Any] = {
        str: "x",
        int: 1,
        float: 1.0,
        bool: False,
        bytes: b"x",
        datetime: datetime(2026, 1, 1, tzinfo=UTC),
        dict: {},
        object: {},
    }
    needed = [c for c in table.columns if not c.nullable and c.name not in given]
    return {column.name: fillers[column.type.python_type] for column in needed} | given


class PreviousServer:
    """The writes and reads of the previous release: its columns, each named, and no others."""

    def __init__(self, database: Database, tables: MetaData) -> None:
        self._database = database
        self._devices = tables.tables["devices"]
        self._windows = tables.tables["telemetry_windows"]
        self.rounds = 0
        self._turned = asyncio.Event()

    async def work(self, worker: int) -> None:
        """Enrol a device, let it report, and list it: over and over."""
        for number in itertools.count():
            name = f"box-{worker}-{number}"
            now = datetime.now(UTC).replace(tzinfo=None)
            async with self._database.write() as tx:
                row = {"id": name, "name": name, "certificate_serial": name, "enrolled_at": now}
                await tx.execute(insert(self._devices), _naive(self._devices, row))
                window = {"device_id": name, "boot_id": "b", "sequence": number, "requests": 7}
                await tx.execute(insert(self._windows), _naive(self._windows, window))
            async with self._database.write() as tx:
                statement = update(self._devices).where(self._devices.c.id == name)
                await tx.execute(statement.values(current_release="acme/a@1"))
            async with self._database.read() as tx:
                found = await tx.first(select(self._devices).where(self._devices.c.id == name))
                assert found is not None
                assert found.current_release == "acme/a@1"
            self.rounds += 1
            self._turned.set()

    async def turn(self, rounds: int = 5) -> None:
        """Wait until the workers have done so many more rounds."""
        wanted = self.rounds + rounds
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.rounds < wanted:
                self._turned.clear()
                await self._turned.wait()


def _naive(table: Table, given: dict[str, Any]) -> dict[str, Any]:
    """Make a row for a reflected table, whose times have a zone only on PostgreSQL."""
    row = values_for(table, given)
    for name, value in row.items():
        if isinstance(value, datetime):
            zone = UTC if getattr(table.c[name].type, "timezone", False) else None
            row[name] = value.replace(tzinfo=zone)
    return row


@contextlib.asynccontextmanager
async def previous_server(url: URL | str) -> AsyncIterator[PreviousServer]:
    """Run the previous release's traffic within the block; raise its first error."""
    async with opened(url) as database:
        tables = MetaData()
        async with database.engine.connect() as connection:
            await connection.run_sync(tables.reflect)
        server = PreviousServer(database, tables)
        tasks = [asyncio.create_task(server.work(worker)) for worker in range(WORKERS)]
        try:
            yield server
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [one for one in ended if not isinstance(one, asyncio.CancelledError)]
        assert failed == []


async def test_the_schema_goes_up_and_down_under_the_previous_releases_traffic(
    url: URL | str,
) -> None:
    async with opened(url) as database:
        await migrate(database, PREVIOUS)
        async with previous_server(url) as server:
            for _ in range(3):
                await server.turn()
                await migrate(database)
                assert await revision(database) == revisions()[-1]
                await server.turn()
                await downgrade(database, PREVIOUS)
                assert await revision(database) == PREVIOUS
            await server.turn()
        async with database.read() as tx:
            rows = await tx.first(text("SELECT count(*) FROM devices"))
        assert rows is not None
        assert rows[0] >= server.rounds > 0


async def test_every_step_down_is_undone_by_its_step_up(url: URL | str) -> None:
    async with opened(url) as database:
        await migrate(database)
        for below in reversed(revisions()[:-1]):
            await downgrade(database, below)
            assert await revision(database) == below
        await migrate(database)
        async with database.engine.connect() as connection:
            assert await connection.run_sync(differences) == []


def differences(connection: Connection) -> list[Any]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    found: list[Any] = compare_metadata(context, METADATA)
    return found


async def test_replicas_that_start_together_migrate_once(url: URL | str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(opened(url)) for _ in range(3)]
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*map(migrate, replicas))
        assert await revision(replicas[0]) == revisions()[-1]


async def test_a_schema_of_a_later_release_is_left_alone(
    url: URL | str, caplog: pytest.LogCaptureFixture
) -> None:
    """Migrations only add, so that an older replica may start again while newer ones run."""
    async with opened(url) as database:
        await migrate(database)
        async with database.write() as tx:
            await tx.execute(text("ALTER TABLE devices ADD COLUMN later INTEGER DEFAULT 0"))
            await tx.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        await migrate(database)
        assert await revision(database) == "9999"
        assert "schema_is_newer" in caplog.text
        with pytest.raises(InvalidInputError, match="9999"):
            await downgrade(database, PREVIOUS)


async def test_an_unknown_revision_is_refused(url: URL | str) -> None:
    async with opened(url) as database:
        await migrate(database)
        with pytest.raises(InvalidInputError, match="0042"):
            await downgrade(database, "0042")
        assert await revision(database) == revisions()[-1]
