"""Measurements of a class are read at most once a minute for all its devices."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.services.devices.class_measurements import FRESH_SECONDS, ClassMeasurementService
from controlplane.store.database import Database, embedded_url, open_database
from controlplane.store.migrate import migrate


class Counted(ClassMeasurementService):
    """A service that counts its reads of the database."""

    reads = 0

    async def _read(self, hardware_class: str, release: str) -> tuple[()]:
        assert await super()._read(hardware_class, release) == ()
        self.reads += 1
        return ()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = open_database(embedded_url(tmp_path / "flotilla.db"))
    await migrate(database)
    yield database
    await database.close()


async def test_a_storm_of_one_class_reads_once(database: Database) -> None:
    now = 0.0
    service = Counted(database, lambda: now)
    for _ in range(5):
        assert await service.measurements("0123", "acme/unpublished@1") == ()
    assert service.reads == 1
    assert await service.measurements("4567", "acme/unpublished@1") == ()
    assert service.reads == 2
    now = FRESH_SECONDS + 1
    await service.measurements("0123", "acme/unpublished@1")
    assert service.reads == 3
    assert await service.measurements("0123", "") == ()
    assert service.reads == 3
