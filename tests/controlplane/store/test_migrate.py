"""Migrations lead to exactly the tables that the code expects."""

from datetime import UTC, datetime
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, MetaData, Table, insert, select

from controlplane.store.database import Database
from controlplane.store.devices import DEVICES
from controlplane.store.migrate import MIGRATIONS, configuration, migrate
from controlplane.store.tables import METADATA
from controlplane.store.telemetry import WINDOWS


async def test_an_empty_database_gets_every_table(empty: Database) -> None:
    await migrate(empty)
    async with empty.engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_migrating_again_changes_nothing(database: Database) -> None:
    await migrate(database)
    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_filled_database_of_any_version_is_brought_forward(empty: Database) -> None:
    """Run from the first version on: steps add columns that older rows lack."""
    versions = sorted(path.stem[1:5] for path in (MIGRATIONS / "versions").glob("m*.py"))
    async with empty.engine.begin() as connection:
        await connection.run_sync(lambda sync: command.upgrade(configuration(sync), versions[0]))
        await connection.run_sync(fill)
    for version in versions[1:]:
        async with empty.engine.begin() as connection:
            await connection.run_sync(
                lambda sync, to: command.upgrade(configuration(sync), to), version
            )
    async with empty.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
        device = (await connection.execute(select(DEVICES))).one()
        window = (await connection.execute(select(WINDOWS))).one()
    assert (device.name, device.state_reason, device.certificate_authority) == ("box", "", "")
    assert (window.requests, window.route, window.escalations) == (7, "", 0)


def fill(connection: Connection) -> None:
    """Insert a device and a window with the columns that the first version requires."""
    tables = MetaData()
    tables.reflect(connection)
    device = values_for(tables.tables["devices"], {"id": "id-box", "name": "box"})
    connection.execute(insert(tables.tables["devices"]), device)
    window = values_for(
        tables.tables["telemetry_windows"], {"device_id": "id-box", "sequence": 1, "requests": 7}
    )
    connection.execute(insert(tables.tables["telemetry_windows"]), window)


def values_for(table: Table, given: dict[str, Any]) -> dict[str, Any]:
    """Return ``given``, with a value of the right type for every other required column."""
    fillers: dict[type, Any] = {
        str: "x",
        int: 1,
        float: 1.0,
        bytes: b"x",
        datetime: datetime(2026, 1, 1, tzinfo=UTC),
        # JSON takes any value.
        object: {},
        dict: {},
    }
    needed = [c for c in table.columns if not c.nullable and c.name not in given]
    return given | {column.name: fillers[column.type.python_type] for column in needed}


def differences(connection: Connection) -> list[Any]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    found: list[Any] = compare_metadata(context, METADATA)
    return found
