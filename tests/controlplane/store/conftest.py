"""Fixtures that run the store's tests on both databases."""

import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from databases import fresh_postgres
from sqlalchemy import URL

from artifact.device_facts import DeviceFacts
from controlplane.store import devices
from controlplane.store.database import Database, embedded_url, open_database
from controlplane.store.devices import Device
from controlplane.store.migrate import migrate

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def device(name: str, now: datetime) -> Device:
    return Device(
        id=f"id-{name}",
        name=name,
        labels={"site": "lab"},
        enrolled_at=now,
        public_key=b"key",
        certificate_serial="1",
        certificate_expires_at=now + timedelta(days=1),
        facts=DeviceFacts(cpu_model="A76", isa=("neon",), runtimes={"onnx": "1"}),
    )


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture(params=["sqlite", "postgres"])
async def empty(
    request: pytest.FixtureRequest, tmp_path: Path, require: Callable[..., None]
) -> AsyncIterator[Database]:
    """A database without tables."""
    async with contextlib.AsyncExitStack() as stack:
        url: URL | str = embedded_url(tmp_path / "flotilla.db")
        if request.param == "postgres":
            url = await stack.enter_async_context(fresh_postgres(require))
        database = open_database(url)
        yield database
        await database.close()


@pytest.fixture
async def database(empty: Database) -> Database:
    await migrate(empty)
    return empty


@pytest.fixture
async def one(database: Database, now: datetime) -> Database:
    async with database.write() as tx:
        await devices.add(tx, device("box-1", now))
    return database
