"""Telemetry windows: each stored exactly once, by (device, boot, sequence)."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Integer,
    String,
    Table,
    delete,
    select,
)

from controlplane.store.database import AnyRow, Transaction
from controlplane.store.devices import DEVICES
from controlplane.store.schema import METADATA, Json, UtcDateTime
from controlplane.telemetry import DeviceWindow, Energy, Sketch, Window

WINDOWS: Final = Table(
    "telemetry_windows",
    METADATA,
    Column("device_id", String(32), ForeignKey("devices.id"), primary_key=True),
    Column("boot_id", String(64), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("started_at", UtcDateTime, nullable=False, index=True),
    Column("duration_seconds", Float, nullable=False),
    Column("release", String(256), nullable=False),
    Column("slot", String(256), nullable=False),
    Column("model_version", String(256), nullable=False),
    Column("variant", String(256), nullable=False),
    Column("runtime", String(256), nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("generated_tokens", BigInteger, nullable=False),
    Column("prefill_seconds", Float, nullable=False),
    Column("decode_seconds", Float, nullable=False),
    Column("ttft_seconds", Json, nullable=False),
    Column("latency_seconds", Json, nullable=False),
    Column("peak_memory_bytes", BigInteger, nullable=False),
    Column("worker_restarts", Integer, nullable=False),
    Column("throttled_seconds", Float, nullable=False),
    Column("route", String(256), nullable=False),
    Column("escalations", BigInteger, nullable=False),
    # All null when unmeasured.
    Column("joules", Float),
    Column("energy_source", String(16)),
    Column("energy_scope", String(16)),
    Column("energy_method", String(16)),
)
_ENERGY: Final = ("joules", "energy_source", "energy_scope", "energy_method")
_SKETCHES: Final = ("ttft_seconds", "latency_seconds")
_PLAIN: Final = tuple(
    column.name
    for column in WINDOWS.columns
    if column.name not in {"device_id", "boot_id", *_ENERGY, *_SKETCHES}
)


async def add(tx: Transaction, device_id: str, boot_id: str, windows: Sequence[Window]) -> None:
    """Store what is new of these; those stored before stay as they are."""
    await tx.insert_new(WINDOWS, [_values(device_id, boot_id, window) for window in windows])


def _values(device_id: str, boot_id: str, window: Window) -> dict[str, Any]:
    energy = window.energy
    return {
        "device_id": device_id,
        "boot_id": boot_id,
        **{name: getattr(window, name) for name in _PLAIN},
        **{name: msgspec.to_builtins(getattr(window, name), str_keys=True) for name in _SKETCHES},
        "joules": energy.joules if energy else None,
        "energy_source": energy.source if energy else None,
        "energy_scope": energy.scope if energy else None,
        "energy_method": energy.method if energy else None,
    }


async def since(
    tx: Transaction, moment: datetime | None, release: str
) -> AsyncIterator[tuple[str, DeviceWindow]]:
    """Windows that started at or after ``moment``, of one release or of all, with device ids."""
    statement = select(WINDOWS, DEVICES.c.name, DEVICES.c.hardware_class).join(
        DEVICES, DEVICES.c.id == WINDOWS.c.device_id
    )
    if moment is not None:
        statement = statement.where(WINDOWS.c.started_at >= moment)
    if release:
        statement = statement.where(WINDOWS.c.release == release)
    for row in await tx.all(statement):
        yield row.device_id, DeviceWindow(row.name, row.hardware_class, _window(row))


def _window(row: AnyRow) -> Window:
    energy = None
    if row.joules is not None:
        energy = Energy(row.joules, row.energy_source, row.energy_scope, row.energy_method)
    return Window(
        **{name: getattr(row, name) for name in _PLAIN},
        ttft_seconds=_sketch(row.ttft_seconds),
        latency_seconds=_sketch(row.latency_seconds),
        energy=energy,
    )


def _sketch(stored: object) -> Sketch:
    # JSON has no integer keys: strict=False reads them back from texts.
    return msgspec.convert(stored, Sketch, strict=False)


async def forget(tx: Transaction, started_before: datetime) -> int:
    """Delete windows older than this; how many."""
    return await tx.changed(delete(WINDOWS).where(WINDOWS.c.started_at < started_before))
