"""Assignments: the release that the director wants on a device, and its generation."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, Column, ForeignKey, String, Table, bindparam, select, update

from controlplane.errors import StaleError
from controlplane.store.database import BATCH_ROWS, Transaction, batches
from controlplane.store.schema import METADATA, UtcDateTime

ASSIGNMENTS: Final = Table(
    "assignments",
    METADATA,
    Column("device_id", String(32), ForeignKey("devices.id"), primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("release", String(256), nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("assigned_at", UtcDateTime, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Assignment:
    """An assignment; each raises ``generation`` by one. An empty release means: serve nothing."""

    generation: int
    release: str
    manifest_sha256: str


NOTHING: Final = Assignment(0, "", "")
_REPLACE: Final = (
    update(ASSIGNMENTS)
    .where(
        ASSIGNMENTS.c.device_id == bindparam("of_device"),
        ASSIGNMENTS.c.generation == bindparam("seen"),
    )
    .values(
        {
            name: bindparam(name)
            for name in ("generation", "release", "manifest_sha256", "assigned_at")
        }
    )
)


async def get(tx: Transaction, device_id: str) -> tuple[Assignment, datetime | None]:
    """Return a device's assignment and its time; NOTHING before the first one."""
    row = await tx.first(
        select(
            ASSIGNMENTS.c.generation,
            ASSIGNMENTS.c.release,
            ASSIGNMENTS.c.manifest_sha256,
            ASSIGNMENTS.c.assigned_at,
        ).where(ASSIGNMENTS.c.device_id == device_id)
    )
    return (Assignment(*row[:3]), row.assigned_at) if row else (NOTHING, None)


@dataclass(frozen=True, slots=True)
class Change:
    """Replace the assignment of generation ``seen`` (0: none) of one device by ``wanted``."""

    device_id: str
    seen: int
    wanted: Assignment


async def replace(tx: Transaction, changes: Sequence[Change], now: datetime) -> None:
    """Make every change; raise StaleError if a device is no longer at the generation seen."""
    rows = [
        {
            "device_id": change.device_id,
            "generation": change.wanted.generation,
            "release": change.wanted.release,
            "manifest_sha256": change.wanted.manifest_sha256,
            "assigned_at": now,
        }
        for change in changes
    ]
    # An update cannot match a missing row, and an upsert could not check the generation.
    first = [row for row, change in zip(rows, changes, strict=True) if change.seen == 0]
    await tx.insert_new(ASSIGNMENTS, first)
    later = [
        {"of_device": row.pop("device_id"), "seen": change.seen, **row}
        for row, change in zip(rows, changes, strict=True)
        if change.seen
    ]
    await tx.execute_batches(_REPLACE, later)
    # An executemany does not report which rows it matched, so the rows are read back.
    for batch in batches(changes, BATCH_ROWS):
        await _check(tx, batch)


async def _check(tx: Transaction, changes: Sequence[Change]) -> None:
    ids = [change.device_id for change in changes]
    statement = select(
        ASSIGNMENTS.c.device_id,
        ASSIGNMENTS.c.generation,
        ASSIGNMENTS.c.release,
        ASSIGNMENTS.c.manifest_sha256,
    ).where(ASSIGNMENTS.c.device_id.in_(ids))
    stored = {row[0]: Assignment(*row[1:]) for row in await tx.all(statement)}
    for change in changes:
        if stored.get(change.device_id, NOTHING) != change.wanted:
            raise StaleError(
                f"device {change.device_id} is no longer at generation {change.seen}",
                advice="Look at the device again, then decide anew.",
            )
