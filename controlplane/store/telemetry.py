"""The table of telemetry windows, each stored once by (device, boot, sequence)."""

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

from artifact.sketch import Sketch
from artifact.window import SKETCHES, Energy, Provenance, Window
from controlplane.store.database import AnyRow, Transaction
from controlplane.store.devices import DEVICES
from controlplane.store.schema import METADATA, Json, UtcDateTime
from controlplane.telemetry import DeviceWindow

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
    # All null if unmeasured.
    Column("joules", Float),
    Column("energy_source", String(16)),
    Column("energy_scope", String(16)),
    Column("energy_method", String(16)),
)
_ENERGY: Final = ("joules", "energy_source", "energy_scope", "energy_method")
_PLAIN: Final = tuple(
    column.name
    for column in WINDOWS.columns
    if column.name not in {"device_id", "boot_id", *_ENERGY, *SKETCHES}
)


async def add(tx: Transaction, device_id: str, boot_id: str, windows: Sequence[Window]) -> None:
    """Insert the windows that are not stored yet."""
    # An agent sends windows again if their acknowledgement was lost: the first copy stays.
    await tx.insert_new(WINDOWS, [_values(device_id, boot_id, window) for window in windows])


def _values(device_id: str, boot_id: str, window: Window) -> dict[str, Any]:
    energy = window.energy
    return {
        "device_id": device_id,
        "boot_id": boot_id,
        **{name: getattr(window, name) for name in _PLAIN},
        **{name: msgspec.to_builtins(getattr(window, name), str_keys=True) for name in SKETCHES},
        "joules": energy.joules if energy else None,
        "energy_source": energy.provenance.source if energy else None,
        "energy_scope": energy.provenance.scope if energy else None,
        "energy_method": energy.provenance.method if energy else None,
    }


async def since(
    tx: Transaction, moment: datetime | None, release: str
) -> AsyncIterator[tuple[str, DeviceWindow]]:
    """Yield device ids and windows that started at or after ``moment``.

    Of one release, or of all if ``release`` is empty.
    """
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
        provenance = Provenance(row.energy_source, row.energy_scope, row.energy_method)
        energy = Energy(row.joules, provenance)
    same_names: dict[str, Any] = {
        **{name: getattr(row, name) for name in _PLAIN},
        **{name: _sketch(getattr(row, name)) for name in SKETCHES},
    }
    return Window(energy=energy, **same_names)


def _sketch(stored: object) -> Sketch:
    # JSON keys are strings: strict=False converts them back to integers.
    return msgspec.convert(stored, Sketch, strict=False)


async def forget(tx: Transaction, started_before: datetime) -> int:
    """Delete the windows that started earlier; return their number."""
    return await tx.changed(delete(WINDOWS).where(WINDOWS.c.started_at < started_before))
