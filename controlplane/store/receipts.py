"""Receipts: signed reports of what devices did with their assignments, stored once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    LargeBinary,
    String,
    Table,
    Text,
    delete,
    select,
)

from controlplane.fleet import UpdateState
from controlplane.store.database import AnyRow, Transaction
from controlplane.store.devices import DEVICES, DeviceState
from controlplane.store.schema import METADATA, Json, UtcDateTime

# Receipts kept per device, the newest.
MAX_RECEIPTS: Final = 1000

RECEIPTS: Final = Table(
    "receipts",
    METADATA,
    Column("device_id", String(32), ForeignKey("devices.id"), primary_key=True),
    Column("generation", BigInteger, primary_key=True, autoincrement=False),
    Column("release", String(256), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("reason", String(128), nullable=False),
    Column("detail", Text, nullable=False),
    Column("bytes_downloaded", BigInteger, nullable=False),
    Column("switch_seconds", Float, nullable=False),
    Column("decisions", Json, nullable=False),
    Column("checks", Json, nullable=False),
    Column("finished_at", UtcDateTime, nullable=False),
    Column("received_at", UtcDateTime, nullable=False),
    Column("current_release", String(256), nullable=False),
    Column("last_good_release", String(256), nullable=False),
    # The signed bytes and the signature, as evidence.
    Column("signed", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRecord:
    """A variant that selection considered; figures are 0 or None if not measured."""

    variant: str
    runtime: str
    quantization: str
    bucket: str
    reason: str
    predicted_memory_bytes: int = 0
    measured_memory_bytes: int = 0
    predicted_tokens_per_second: float = 0.0
    measured_tokens_per_second: float = 0.0
    measured_joules_per_token: float | None = None
    quality: str = ""
    prediction_source: str = ""
    predicted_joules_per_token: float | None = None
    predicted_ttft_seconds: float | None = None
    measured_ttft_seconds: float | None = None
    context_length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """The choice of a slot's variant with its reasons; ``chosen`` is empty if none fits."""

    slot: str
    model: str
    chosen_variant: str
    objective: str
    reason: str
    memory_budget_bytes: int
    candidates: tuple[CandidateRecord, ...] = ()
    rate_unit: str = ""


@dataclass(frozen=True, slots=True)
class ProbationCheck:
    """One check of a candidate: passed, failed, inconclusive, or unmeasured."""

    slot: str
    name: str
    outcome: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A receipt; ``switch_seconds`` is 0 if the candidate never served."""

    generation: int
    release: str
    outcome: UpdateState
    reason: str
    detail: str
    bytes_downloaded: int
    switch_seconds: float
    decisions: tuple[DecisionRecord, ...]
    checks: tuple[ProbationCheck, ...]
    finished_at: datetime
    current_release: str
    last_good_release: str


_PLAIN: Final = (
    "generation",
    "release",
    "reason",
    "detail",
    "bytes_downloaded",
    "switch_seconds",
    "finished_at",
    "current_release",
    "last_good_release",
)


def _receipt(row: AnyRow) -> Receipt:
    return Receipt(
        **{name: getattr(row, name) for name in _PLAIN},
        outcome=UpdateState(row.outcome),
        decisions=msgspec.convert(row.decisions, tuple[DecisionRecord, ...]),
        checks=msgspec.convert(row.checks, tuple[ProbationCheck, ...]),
    )


async def add(
    tx: Transaction,
    device_id: str,
    receipt: Receipt,
    *,
    signed: bytes,
    signature: bytes,
    now: datetime,
) -> bool:
    """Store a receipt; return False if this device's receipt of this generation exists."""
    key = (RECEIPTS.c.device_id == device_id, RECEIPTS.c.generation == receipt.generation)
    # The agent repeats a receipt until it is acknowledged.
    if await tx.first(select(RECEIPTS.c.generation).where(*key)):
        return False
    row = {
        **{name: getattr(receipt, name) for name in _PLAIN},
        "device_id": device_id,
        "outcome": receipt.outcome,
        "decisions": msgspec.to_builtins(receipt.decisions),
        "checks": msgspec.to_builtins(receipt.checks),
        "received_at": now,
        "signed": signed,
        "signature": signature,
    }
    await tx.insert_new(RECEIPTS, [row])
    await _keep_newest(tx, device_id)
    return True


async def _keep_newest(tx: Transaction, device_id: str) -> None:
    """Delete old receipts: a device may sign any generation, which must not fill the disk."""
    mine = RECEIPTS.c.device_id == device_id
    newest_first = select(RECEIPTS.c.generation).where(mine).order_by(RECEIPTS.c.generation.desc())
    last = await tx.first(newest_first.limit(1).offset(MAX_RECEIPTS - 1))
    if last is not None:
        await tx.execute(delete(RECEIPTS).where(mine, RECEIPTS.c.generation < last.generation))


async def newest(tx: Transaction, device_id: str, limit: int) -> Sequence[Receipt]:
    rows = await tx.all(
        select(RECEIPTS)
        .where(RECEIPTS.c.device_id == device_id)
        .order_by(RECEIPTS.c.generation.desc())
        .limit(limit)
    )
    return [_receipt(row) for row in rows]


async def find(tx: Transaction, device_id: str, generation: int) -> Receipt | None:
    row = await tx.first(
        select(RECEIPTS).where(
            RECEIPTS.c.device_id == device_id, RECEIPTS.c.generation == generation
        )
    )
    return _receipt(row) if row else None


async def newest_of_class(
    tx: Transaction, hardware_class: str, limit: int
) -> Sequence[tuple[str, tuple[DecisionRecord, ...]]]:
    """Return the newest decisions of active devices of this class, newest first, with their ids."""
    rows = await tx.all(
        select(RECEIPTS.c.device_id, RECEIPTS.c.decisions)
        .join(DEVICES, DEVICES.c.id == RECEIPTS.c.device_id)
        .where(
            DEVICES.c.hardware_class == hardware_class,
            DEVICES.c.state == DeviceState.ACTIVE,
        )
        .order_by(RECEIPTS.c.received_at.desc())
        .limit(limit)
    )
    return [
        (row.device_id, msgspec.convert(row.decisions, tuple[DecisionRecord, ...])) for row in rows
    ]


async def newest_for_release(tx: Transaction, device_id: str, release: str) -> Receipt | None:
    """Return the newest receipt about this release that has decisions."""
    rows = await tx.all(
        select(RECEIPTS)
        .where(RECEIPTS.c.device_id == device_id, RECEIPTS.c.release == release)
        .order_by(RECEIPTS.c.generation.desc())
        .limit(20)
    )
    receipts = [_receipt(row) for row in rows]
    return next((receipt for receipt in receipts if receipt.decisions), None) or (
        receipts[0] if receipts else None
    )


async def serving_variants(
    tx: Transaction, device_ids: Sequence[str]
) -> Mapping[str, Mapping[str, str]]:
    """Return, per device, the chosen variant of each slot of the release that serves now."""
    rows = await tx.all(
        select(RECEIPTS.c.device_id, RECEIPTS.c.decisions)
        .join(DEVICES, DEVICES.c.id == RECEIPTS.c.device_id)
        .where(
            RECEIPTS.c.device_id.in_(device_ids),
            RECEIPTS.c.release == DEVICES.c.current_release,
            RECEIPTS.c.outcome == UpdateState.COMMITTED,
        )
        .order_by(RECEIPTS.c.generation)
    )
    return {
        row.device_id: {
            decision.slot: decision.chosen_variant
            for decision in msgspec.convert(row.decisions, tuple[DecisionRecord, ...])
        }
        for row in rows
        if row.decisions
    }
