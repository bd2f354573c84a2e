"""Open streams and the devices' last reports, stored in the rows of devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import update

from artifact.device_facts import DeviceFacts
from artifact.health import ReleaseHealth
from controlplane.fleet import UpdateState
from controlplane.store.database import BATCH_IDS, Transaction, batches
from controlplane.store.devices import DEVICES


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """First report of a device on a new stream."""

    boot_id: str
    agent_version: str
    facts: DeviceFacts
    hardware_class: str
    # Highest generation that the device has accepted.
    generation: int = 0
    current_release: str
    last_good_release: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Progress of a device with an assignment."""

    generation: int
    state: UpdateState
    detail: str
    bytes_done: int
    bytes_total: int
    current_release: str
    last_good_release: str
    # None if not reported.
    health: ReleaseHealth | None = None


async def greet(
    tx: Transaction, device_id: str, session: str, greeting: Greeting, now: datetime
) -> None:
    """Record a new stream and the device's first report on it."""
    await tx.execute(
        update(DEVICES)
        .where(DEVICES.c.id == device_id)
        .values(
            session=session,
            last_seen_at=now,
            boot_id=greeting.boot_id,
            agent_version=greeting.agent_version,
            facts=msgspec.to_builtins(greeting.facts),
            hardware_class=greeting.hardware_class,
            current_release=greeting.current_release,
            last_good_release=greeting.last_good_release,
        )
    )


async def report_progress(
    tx: Transaction, device_id: str, progress: Progress, now: datetime
) -> None:
    """Record progress. Reports of a stream are ordered; one of an older generation is ignored."""
    health: dict[str, Any] = {}
    if progress.health is not None:
        health = {"health": msgspec.to_builtins(progress.health), "health_at": now}
    await tx.execute(
        update(DEVICES)
        .where(DEVICES.c.id == device_id, DEVICES.c.update_generation <= progress.generation)
        .values(
            last_seen_at=now,
            update_generation=progress.generation,
            update_state=progress.state,
            update_detail=progress.detail,
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
            current_release=progress.current_release,
            last_good_release=progress.last_good_release,
            **health,
        )
    )


async def leave(tx: Transaction, device_id: str, session: str, now: datetime) -> bool:
    """Record the end of a stream; return False if the device has a newer one."""
    return bool(
        await tx.changed(
            update(DEVICES)
            # The device may have connected again before its old stream's end is stored.
            .where(DEVICES.c.id == device_id, DEVICES.c.session == session)
            .values(session=None, last_seen_at=now)
        )
    )


async def touch(tx: Transaction, device_ids: Sequence[str], now: datetime) -> None:
    """Record that these devices' streams are open."""
    for batch in batches(device_ids, BATCH_IDS):
        await tx.execute(update(DEVICES).where(DEVICES.c.id.in_(batch)).values(last_seen_at=now))


async def expire(tx: Transaction, seen_before: datetime) -> int:
    """Close streams of devices last seen before this time; return their number."""
    return await tx.changed(
        update(DEVICES)
        .where(DEVICES.c.session.is_not(None), DEVICES.c.last_seen_at < seen_before)
        .values(session=None)
    )
