"""Rollouts and their waves, read and saved together with their members."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    String,
    Table,
    Text,
    and_,
    insert,
    select,
    update,
)

from controlplane.errors import NotFoundError, StaleError
from controlplane.rollouts.gates import Counts
from controlplane.rollouts.machine import FINISHED, RolloutState
from controlplane.rollouts.records import Member, Rollout, Wave
from controlplane.rollouts.strategy import Strategy, decode_strategy, encode_strategy
from controlplane.store import rollout_devices
from controlplane.store.database import AnyRow, Transaction
from controlplane.store.paging import Page, PageRequest, fetch_page
from controlplane.store.rollout_devices import ROLLOUT_DEVICES
from controlplane.store.schema import METADATA, Json, UtcDateTime

ROLLOUTS: Final = Table(
    "rollouts",
    METADATA,
    Column("id", String(32), primary_key=True),
    # Rises with every change, also of members: guards updates and notifies watchers.
    Column("version", BigInteger, nullable=False),
    Column("release", String(256), nullable=False),
    Column("selector", Text, nullable=False),
    Column("strategy", Text, nullable=False),
    Column("state", String(32), nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", String(128), nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("waves", Json, nullable=False),
)
MOVING: Final = (RolloutState.SCHEDULED, RolloutState.RUNNING, RolloutState.ROLLING_BACK)
UNFINISHED: Final = tuple(state for state in RolloutState if state not in FINISHED)


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """A rollout at the version at which it was read."""

    rollout: Rollout
    version: int


@dataclass(frozen=True, slots=True)
class ListedRollout:
    """A rollout without its members, with its waves as counts."""

    rollout: Rollout
    counts: tuple[Counts, ...]


async def add(tx: Transaction, rollout: Rollout) -> None:
    await tx.execute(
        insert(ROLLOUTS),
        {
            "id": rollout.id,
            "version": 1,
            "release": rollout.release,
            "selector": rollout.selector,
            "strategy": encode_strategy(rollout.strategy),
            "created_at": rollout.created_at,
            "created_by": rollout.created_by,
            **_changing(rollout),
        },
    )
    await rollout_devices.add(tx, rollout.id, rollout.members.values())


async def get(tx: Transaction, rollout_id: str) -> StoredRollout:
    """Return the rollout; raise NotFoundError if the id is unknown."""
    row = await tx.first(select(ROLLOUTS).where(ROLLOUTS.c.id == rollout_id))
    if row is None:
        raise _not_found(rollout_id)
    members = await rollout_devices.of_rollout(tx, rollout_id)
    return StoredRollout(replace(_rollout(row), members=members), row.version)


async def moving(tx: Transaction) -> list[str]:
    """Return the ids of the rollouts that a tick may change, oldest first."""
    rows = await tx.all(
        select(ROLLOUTS.c.id).where(ROLLOUTS.c.state.in_(MOVING)).order_by(ROLLOUTS.c.id)
    )
    return [row.id for row in rows]


async def page(tx: Transaction, request: PageRequest, now: datetime) -> Page[ListedRollout]:
    """Return a page, newest first."""
    rollouts = await fetch_page(
        tx, select(ROLLOUTS), ROLLOUTS.c.id, request, _rollout, newest_first=True
    )
    counts = await rollout_devices.counts(tx, [rollout.id for rollout in rollouts.items], now)
    return Page(
        tuple(
            ListedRollout(
                rollout,
                tuple(
                    replace(counts[rollout.id].get(index, Counts()), acknowledged=wave.acknowledged)
                    for index, wave in enumerate(rollout.waves)
                ),
            )
            for rollout in rollouts.items
        ),
        rollouts.next_token,
    )


async def save(tx: Transaction, seen: StoredRollout, after: Rollout) -> None:
    """Store the changes since ``seen``; raise StaleError if another writer was faster."""
    await _bump(tx, seen, _changing(after))
    # Unchanged members are not written: a tick of a large fleet changes few of them.
    before = seen.rollout.members
    changed = [member for member in after.members.values() if member != before[member.device_id]]
    await rollout_devices.save(tx, after.id, changed)


async def _bump(tx: Transaction, seen: StoredRollout, values: dict[str, Any]) -> None:
    matched = await tx.changed(
        update(ROLLOUTS)
        .where(ROLLOUTS.c.id == seen.rollout.id, ROLLOUTS.c.version == seen.version)
        .values(version=seen.version + 1, **values)
    )
    if not matched:
        raise StaleError(
            f"rollout {seen.rollout.id} changed meanwhile", advice="Look at it, then try again."
        )


async def policy(tx: Transaction, rollout_id: str) -> tuple[RolloutState, Strategy]:
    """Return the state and strategy, which decide whether a member may retry."""
    row = await tx.first(
        select(ROLLOUTS.c.state, ROLLOUTS.c.strategy).where(ROLLOUTS.c.id == rollout_id)
    )
    if row is None:
        raise _not_found(rollout_id)
    return RolloutState(row.state), decode_strategy(row.strategy)


async def change_member(
    tx: Transaction,
    rollout_id: str,
    device_id: str,
    change: Callable[[Member], Member],
    now: datetime,
) -> Member:
    """Change one member; ticks and watchers notice it by the rollout's version."""
    # First, since it also stops another replica's tick from deciding on the member meanwhile.
    await tx.execute(
        update(ROLLOUTS)
        .where(ROLLOUTS.c.id == rollout_id)
        .values(version=ROLLOUTS.c.version + 1, updated_at=now)
    )
    return await rollout_devices.change(tx, rollout_id, device_id, change)


async def busy(tx: Transaction, besides: str = "") -> dict[str, str]:
    """Return the members of unfinished rollouts other than ``besides``, with their rollout's id."""
    rows = await tx.all(
        select(ROLLOUT_DEVICES.c.device_id, ROLLOUTS.c.id)
        .join(ROLLOUTS, ROLLOUTS.c.id == ROLLOUT_DEVICES.c.rollout_id)
        .where(and_(ROLLOUTS.c.state.in_(UNFINISHED), ROLLOUTS.c.id != besides))
    )
    return {row.device_id: row.id for row in rows}


def _not_found(rollout_id: str) -> NotFoundError:
    return NotFoundError(
        f"there is no rollout {rollout_id[:80]!r}", advice="`flotilla rollout list` shows all."
    )


def _changing(rollout: Rollout) -> dict[str, Any]:
    return {
        "state": rollout.state,
        "reason": rollout.reason,
        "updated_at": rollout.updated_at,
        "waves": msgspec.to_builtins(rollout.waves),
    }


def _rollout(row: AnyRow) -> Rollout:
    return Rollout(
        id=row.id,
        release=row.release,
        selector=row.selector,
        strategy=decode_strategy(row.strategy),
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
        state=RolloutState(row.state),
        reason=row.reason,
        waves=msgspec.convert(row.waves, tuple[Wave, ...]),
    )
