"""The audit log: append-only, each event's digest covers the one before it."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, Column, String, Table, Text, func, insert, select

from artifact.manifest import canonical_json
from controlplane.errors import InvalidInputError
from controlplane.store.database import AnyRow, Transaction
from controlplane.store.paging import Page, PageRequest
from controlplane.store.paging import next_token as page_token
from controlplane.store.schema import METADATA, UtcDateTime

AUDIT: Final = Table(
    "audit_events",
    METADATA,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(256), nullable=False),
    Column("detail", Text, nullable=False),
    Column("digest", String(64), nullable=False),
)
MAX_DETAIL_CHARACTERS: Final = 4096
MAX_SEQUENCE_DIGITS: Final = 18
GENESIS: Final = "0" * 64
# An arbitrary advisory lock number of our own: the log has one writer at a time.
_LOCK: Final = 0x464C4155


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """An audited action; ``digest`` is SHA-256 over the previous digest and all fields."""

    sequence: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: str
    digest: str


def link(previous: str, event: AuditEvent) -> str:
    """Return the digest of ``event`` when it follows the digest ``previous``."""
    fields = [
        previous,
        event.sequence,
        event.at.isoformat(),
        event.actor,
        event.action,
        event.subject,
        event.detail,
    ]
    return hashlib.sha256(canonical_json(fields)).hexdigest()


async def append(
    tx: Transaction, *, at: datetime, actor: str, action: str, subject: str, detail: str = ""
) -> None:
    # Two writers would read the same last event and fork the chain. SQLite has one writer anyway.
    if tx.dialect == "postgresql":
        await tx.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    last = await tx.first(
        select(AUDIT.c.sequence, AUDIT.c.digest).order_by(AUDIT.c.sequence.desc()).limit(1)
    )
    sequence, previous = (last.sequence + 1, last.digest) if last else (1, GENESIS)
    event = AuditEvent(
        sequence, at, actor[:128], action[:64], subject[:256], detail[:MAX_DETAIL_CHARACTERS], ""
    )
    row = {
        "sequence": sequence,
        "at": at,
        "actor": event.actor,
        "action": event.action,
        "subject": event.subject,
        "detail": event.detail,
        "digest": link(previous, event),
    }
    await tx.execute(insert(AUDIT), row)


async def page(tx: Transaction, request: PageRequest) -> Page[AuditEvent]:
    """Return a page, newest first."""
    statement = select(AUDIT).order_by(AUDIT.c.sequence.desc()).limit(request.size + 1)
    if request.after is not None:
        statement = statement.where(AUDIT.c.sequence < _sequence(request.after))
    rows = await tx.all(statement)
    events = tuple(_event(row) for row in rows[: request.size])
    more = len(rows) > request.size
    return Page(events, page_token(str(events[-1].sequence)) if more else "")


def _sequence(key: str) -> int:
    # 18 digits always fit a signed 64-bit integer.
    if not (key.isascii() and key.isdecimal() and len(key) <= MAX_SEQUENCE_DIGITS):
        raise InvalidInputError(
            f"{key[:80]!r} is not the page token of an audit log",
            advice="Pass next_page_token as it came, or leave it out to start anew.",
        )
    return int(key)


async def verify(tx: Transaction) -> int | None:
    """Return the sequence number of the first event with a wrong digest; None if all are right."""
    previous, expected = GENESIS, 1
    async for event in _oldest_first(tx):
        if event.sequence != expected or event.digest != link(previous, event):
            return expected
        previous, expected = event.digest, expected + 1
    return None


async def _oldest_first(tx: Transaction) -> AsyncIterator[AuditEvent]:
    seen = 0
    while rows := await tx.all(
        select(AUDIT).where(AUDIT.c.sequence > seen).order_by(AUDIT.c.sequence).limit(1000)
    ):
        for row in rows:
            yield _event(row)
        seen = rows[-1].sequence


def _event(row: AnyRow) -> AuditEvent:
    return AuditEvent(*row)
