"""Devices: identity, certificates, labels, and the last report (written by ``sessions``)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    LargeBinary,
    String,
    Table,
    Text,
    func,
    insert,
    or_,
    select,
    update,
)

from artifact.device_facts import DeviceFacts
from artifact.health import ReleaseHealth
from controlplane.errors import NameTakenError, NotFoundError
from controlplane.fleet import UpdateState
from controlplane.store.assignments import ASSIGNMENTS
from controlplane.store.database import BATCH_IDS, AnyRow, Transaction, batches
from controlplane.store.paging import Page, PageRequest, fetch_page
from controlplane.store.schema import METADATA, Json, UtcDateTime

MAX_NAME_CHARACTERS: Final = 63

DEVICES: Final = Table(
    "devices",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("name", String(MAX_NAME_CHARACTERS), nullable=False, unique=True),
    Column("labels", Json, nullable=False),
    Column("state", String(16), nullable=False),
    Column("state_reason", Text, nullable=False, server_default=""),
    Column("enrolled_at", UtcDateTime, nullable=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("certificate_serial", String(40), nullable=False),
    # Accepted beside the current one until the device first uses that, since a reply may get lost.
    Column("previous_serial", String(40)),
    Column("certificate_expires_at", UtcDateTime, nullable=False),
    # SHA-256 of the authority that issued the current one; empty for older rows.
    Column("certificate_authority", String(64), nullable=False, server_default=""),
    # Time when the device first used the current one in place of the previous one.
    Column("certificate_seen_at", UtcDateTime),
    Column("hardware_class", String(32), nullable=False),
    Column("facts", Json, nullable=False),
    Column("agent_version", String(64), nullable=False),
    Column("boot_id", String(64), nullable=False),
    # The open stream's id; null without one.
    Column("session", String(32)),
    Column("last_seen_at", UtcDateTime),
    Column("update_generation", BigInteger, nullable=False),
    Column("update_state", String(16), nullable=False),
    Column("update_detail", Text, nullable=False),
    Column("bytes_done", BigInteger, nullable=False),
    Column("bytes_total", BigInteger, nullable=False),
    Column("current_release", String(256), nullable=False),
    Column("last_good_release", String(256), nullable=False),
    # The newest health report and its time; null before the first.
    Column("health", Json),
    Column("health_at", UtcDateTime),
    Index("ix_devices_public_key", "public_key"),
)


class DeviceState(StrEnum):
    """State of a device; banned means hostile, retired means taken out of service."""

    ACTIVE = "active"
    QUARANTINED = "quarantined"
    BANNED = "banned"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device with its assignment; empty texts and generation 0 before there is one."""

    id: str
    name: str
    labels: dict[str, str] = field(default_factory=dict)
    state: DeviceState = DeviceState.ACTIVE
    state_reason: str = ""
    enrolled_at: datetime
    public_key: bytes
    certificate_serial: str
    previous_serial: str | None = None
    certificate_expires_at: datetime
    certificate_authority: str = ""
    certificate_seen_at: datetime | None = None
    hardware_class: str = ""
    facts: DeviceFacts = field(default_factory=DeviceFacts)
    agent_version: str = ""
    boot_id: str = ""
    session: str | None = None
    last_seen_at: datetime | None = None
    update_generation: int = 0
    update_state: UpdateState = UpdateState.IDLE
    update_detail: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
    current_release: str = ""
    last_good_release: str = ""
    health: ReleaseHealth | None = None
    health_at: datetime | None = None
    assigned_generation: int = 0
    assigned_release: str = ""
    assigned_manifest_sha256: str = ""

    @property
    def connected(self) -> bool:
        return self.session is not None


_DEVICE: Final = select(
    DEVICES,
    ASSIGNMENTS.c.generation.label("assigned_generation"),
    ASSIGNMENTS.c.release.label("assigned_release"),
    ASSIGNMENTS.c.manifest_sha256.label("assigned_manifest_sha256"),
).select_from(DEVICES.outerjoin(ASSIGNMENTS, ASSIGNMENTS.c.device_id == DEVICES.c.id))


def _device(row: AnyRow) -> Device:
    fields = dict(row._mapping)  # noqa: SLF001 - the documented way to a row's names
    fields["state"] = DeviceState(fields["state"])
    fields["update_state"] = UpdateState(fields["update_state"])
    fields["facts"] = msgspec.convert(fields["facts"], DeviceFacts)
    fields["health"] = msgspec.convert(fields["health"], ReleaseHealth | None)
    fields["assigned_generation"] = fields["assigned_generation"] or 0
    fields["assigned_release"] = fields["assigned_release"] or ""
    fields["assigned_manifest_sha256"] = fields["assigned_manifest_sha256"] or ""
    return Device(**fields)


async def add(tx: Transaction, device: Device) -> None:
    """Add a device; raise NameTakenError if another has the name."""
    if await tx.first(select(DEVICES.c.id).where(DEVICES.c.name == device.name)):
        raise NameTakenError(
            f"a device is already called {device.name!r}",
            advice="Choose another --name, or retire the old device first.",
        )
    row = {column.name: getattr(device, column.name) for column in DEVICES.columns}
    row["facts"] = msgspec.to_builtins(device.facts)
    row["health"] = msgspec.to_builtins(device.health)
    await tx.execute(insert(DEVICES), row)


async def find(tx: Transaction, device_id: str) -> Device | None:
    row = await tx.first(_DEVICE.where(DEVICES.c.id == device_id))
    return _device(row) if row else None


async def get(tx: Transaction, name_or_id: str) -> Device:
    """Return the device of this name or id; raise NotFoundError if there is none."""
    named = or_(DEVICES.c.id == name_or_id, DEVICES.c.name == name_or_id)
    # A device may have another's id as its name; the id takes precedence.
    row = await tx.first(_DEVICE.where(named).order_by(DEVICES.c.id != name_or_id))
    if row is None:
        raise NotFoundError(
            f"there is no device {name_or_id[:80]!r}", advice="`flotilla device list` shows all."
        )
    return _device(row)


async def page(tx: Transaction, request: PageRequest) -> Page[Device]:
    """Return a page of devices ordered by name."""
    return await fetch_page(tx, _DEVICE, DEVICES.c.name, request, _device)


async def every(tx: Transaction) -> Sequence[Device]:
    """Return all devices ordered by name; selectors and waves are evaluated on them."""
    return [_device(row) for row in await tx.all(_DEVICE.order_by(DEVICES.c.name))]


async def several(tx: Transaction, device_ids: Sequence[str]) -> Sequence[Device]:
    """Return the devices of these ids, ordered by name."""
    found: list[Device] = []
    for batch in batches(device_ids, BATCH_IDS):
        found += [_device(row) for row in await tx.all(_DEVICE.where(DEVICES.c.id.in_(batch)))]
    return sorted(found, key=lambda device: device.name)


async def set_labels(tx: Transaction, device_id: str, labels: dict[str, str]) -> None:
    await tx.execute(update(DEVICES).where(DEVICES.c.id == device_id).values(labels=labels))


async def set_certificate(
    tx: Transaction,
    device_id: str,
    *,
    serial: str,
    previous: str,
    authority: str,
    expires_at: datetime,
) -> None:
    await tx.execute(
        update(DEVICES)
        .where(DEVICES.c.id == device_id)
        .values(
            certificate_serial=serial,
            previous_serial=previous,
            certificate_authority=authority,
            certificate_expires_at=expires_at,
        )
    )


async def forget_previous_serial(
    tx: Transaction, device_id: str, *, shown: str, now: datetime
) -> None:
    """Forget the old certificate, since the device has used its new one.

    Does nothing if ``shown`` was replaced meanwhile: the device may not have the newest one yet.
    """
    await tx.execute(
        update(DEVICES)
        .where(DEVICES.c.id == device_id, DEVICES.c.certificate_serial == shown)
        .values(previous_serial=None, certificate_seen_at=now)
    )


async def without_authority(tx: Transaction, authority: str) -> Sequence[Device]:
    """Return active devices that have not used a certificate of this authority, unordered."""
    shown = (DEVICES.c.certificate_authority == authority) & DEVICES.c.previous_serial.is_(None)
    waiting = _DEVICE.where(DEVICES.c.state == DeviceState.ACTIVE, ~shown)
    return [_device(row) for row in await tx.all(waiting)]


async def count_active(tx: Transaction) -> int:
    row = await tx.first(
        select(func.count()).select_from(DEVICES).where(DEVICES.c.state == DeviceState.ACTIVE)
    )
    return int(row[0]) if row else 0


async def find_by_key(tx: Transaction, public_key: bytes) -> Device | None:
    """Return the device that enrolled with this key, except a retired one."""
    row = await tx.first(
        _DEVICE.where(
            DEVICES.c.public_key == public_key, DEVICES.c.state != DeviceState.RETIRED
        ).order_by(DEVICES.c.id.desc())
    )
    return _device(row) if row else None


async def set_state(tx: Transaction, device: Device, state: DeviceState, reason: str) -> None:
    """Set the state. A retired device gives up its name: it is found by its id, or as NAME~ID."""
    # The name is unique, and the replacement of a broken box should be able to take it.
    name = device.name
    if state is DeviceState.RETIRED:
        name = f"{name[: MAX_NAME_CHARACTERS - len(device.id) - 1]}~{device.id}"
    await tx.execute(
        update(DEVICES)
        .where(DEVICES.c.id == device.id)
        .values(state=state, state_reason=reason, name=name)
    )
