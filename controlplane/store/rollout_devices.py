"""Members of rollouts: a row for each device of each rollout."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Integer,
    String,
    Table,
    Text,
    and_,
    bindparam,
    case,
    func,
    insert,
    or_,
    select,
    update,
)

from controlplane.errors import NotFoundError
from controlplane.fleet.presence import GRACE_SECONDS
from controlplane.rollouts.gates import Counts
from controlplane.rollouts.machine import MemberState
from controlplane.rollouts.records import Member
from controlplane.store.assignments import ASSIGNMENTS
from controlplane.store.database import AnyRow, Transaction
from controlplane.store.devices import DEVICES, DeviceState
from controlplane.store.schema import METADATA, UtcDateTime

ROLLOUT_DEVICES: Final = Table(
    "rollout_devices",
    METADATA,
    Column("rollout_id", String(32), ForeignKey("rollouts.id"), primary_key=True),
    Column("device_id", String(32), ForeignKey("devices.id"), primary_key=True, index=True),
    Column("wave", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("succeeded", Boolean),
    Column("detail", Text, nullable=False),
    Column("previous_release", String(256), nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("assigned_at", UtcDateTime),
    Column("reachable_at_assignment", Boolean, nullable=False),
    Column("sent_back", Boolean, nullable=False),
    Column("bytes_downloaded", BigInteger, nullable=False),
    Column("switch_seconds", Float, nullable=False),
    Column("retries", Integer, nullable=False),
)
_COLUMNS: Final = tuple(
    column.name
    for column in ROLLOUT_DEVICES.columns
    if column.name not in {"rollout_id", "device_id"}
)
# A member's row with its device's name.
_MEMBER: Final = select(ROLLOUT_DEVICES, DEVICES.c.name).join(
    DEVICES, DEVICES.c.id == ROLLOUT_DEVICES.c.device_id
)


@dataclass(frozen=True, slots=True)
class DeviceNow:
    """Current facts of a member; ``generation`` is of its newest assignment by any rollout."""

    id: str
    connected: bool
    last_seen_at: datetime | None
    active: bool
    current_release: str
    generation: int
    assigned_release: str


async def add(tx: Transaction, rollout_id: str, members: Iterable[Member]) -> None:
    rows = [
        {"rollout_id": rollout_id, "device_id": member.device_id, **_values(member)}
        for member in members
    ]
    await tx.execute_batches(insert(ROLLOUT_DEVICES), rows)


async def of_rollout(tx: Transaction, rollout_id: str) -> dict[str, Member]:
    """Return the members by device id, ordered by wave and name."""
    rows = await tx.all(
        _MEMBER.where(ROLLOUT_DEVICES.c.rollout_id == rollout_id).order_by(
            ROLLOUT_DEVICES.c.wave, DEVICES.c.name
        )
    )
    return {row.device_id: _member(row) for row in rows}


async def save(tx: Transaction, rollout_id: str, members: Iterable[Member]) -> None:
    statement = (
        update(ROLLOUT_DEVICES)
        .where(
            ROLLOUT_DEVICES.c.rollout_id == bindparam("of_rollout"),
            ROLLOUT_DEVICES.c.device_id == bindparam("of_device"),
        )
        .values({name: bindparam(name) for name in _COLUMNS})
    )
    rows = [
        {"of_rollout": rollout_id, "of_device": member.device_id, **_values(member)}
        for member in members
    ]
    await tx.execute_batches(statement, rows)


async def change(
    tx: Transaction, rollout_id: str, device_id: str, changed: Callable[[Member], Member]
) -> Member:
    """Change one member; raise NotFoundError if the device is not part of the rollout."""
    one = and_(ROLLOUT_DEVICES.c.rollout_id == rollout_id, ROLLOUT_DEVICES.c.device_id == device_id)
    row = await tx.first(_MEMBER.where(one))
    if row is None:
        raise NotFoundError(f"device {device_id} is not part of rollout {rollout_id}")
    after = changed(_member(row))
    await tx.execute(update(ROLLOUT_DEVICES).where(one).values(**_values(after)))
    return after


async def rollout_of(tx: Transaction, device_id: str, generation: int) -> str | None:
    """Return the rollout that assigned this generation to the device."""
    row = await tx.first(
        select(ROLLOUT_DEVICES.c.rollout_id).where(
            ROLLOUT_DEVICES.c.device_id == device_id,
            ROLLOUT_DEVICES.c.generation == generation,
        )
    )
    return str(row.rollout_id) if row else None


async def known_now(tx: Transaction, rollout_id: str) -> list[DeviceNow]:
    """Return the facts that a tick needs; read on every tick, so only those columns."""
    rows = await tx.all(
        select(
            DEVICES.c.id,
            DEVICES.c.session.is_not(None),
            DEVICES.c.last_seen_at,
            DEVICES.c.state == DeviceState.ACTIVE,
            DEVICES.c.current_release,
            func.coalesce(ASSIGNMENTS.c.generation, 0),
            func.coalesce(ASSIGNMENTS.c.release, ""),
        )
        .select_from(ROLLOUT_DEVICES)
        .join(DEVICES, DEVICES.c.id == ROLLOUT_DEVICES.c.device_id)
        .outerjoin(ASSIGNMENTS, ASSIGNMENTS.c.device_id == DEVICES.c.id)
        .where(ROLLOUT_DEVICES.c.rollout_id == rollout_id)
    )
    return [DeviceNow(*row) for row in rows]


async def counts(
    tx: Transaction, rollout_ids: Sequence[str], now: datetime
) -> dict[str, dict[int, Counts]]:
    """Return counts by rollout and wave, without waves that have no devices.

    A device is reachable by the rule of ``controlplane.fleet.presence`` and of ``is_reachable``.
    """
    recently = now - timedelta(seconds=GRACE_SECONDS)
    reachable = and_(
        DEVICES.c.state == DeviceState.ACTIVE,
        or_(DEVICES.c.session.is_not(None), DEVICES.c.last_seen_at >= recently),
    )

    def number(condition: Any) -> Any:
        return func.sum(case((condition, 1), else_=0))

    # Summed by the database: a list of rollouts must not load their members.
    column = ROLLOUT_DEVICES.c
    rows = await tx.all(
        select(
            column.rollout_id,
            column.wave,
            func.count().label("targeted"),
            number(reachable).label("reachable"),
            number(column.succeeded.is_not(None)).label("reported"),
            number(column.succeeded.is_(True)).label("succeeded"),
            number(column.succeeded.is_(False)).label("failed"),
        )
        .join(DEVICES, DEVICES.c.id == column.device_id)
        .where(column.rollout_id.in_(rollout_ids))
        .group_by(column.rollout_id, column.wave)
    )
    found: dict[str, dict[int, Counts]] = defaultdict(dict)
    for row in rows:
        found[row.rollout_id][row.wave] = Counts(
            row.targeted, row.reachable, row.reported, row.succeeded, row.failed
        )
    return found


def _values(one: Member) -> dict[str, Any]:
    return {name: getattr(one, name) for name in _COLUMNS}


def _member(row: AnyRow) -> Member:
    fields = {name: getattr(row, name) for name in (*_COLUMNS, "device_id", "name")}
    fields["state"] = MemberState(fields["state"])
    return Member(**fields)
