"""Request ids make mutations idempotent: a repeated request is carried out once."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Column, String, Table, delete, select

from controlplane.errors import StaleError
from controlplane.store.database import Transaction
from controlplane.store.schema import METADATA, UtcDateTime

REQUESTS: Final = Table(
    "requests",
    METADATA,
    Column("actor", String(128), primary_key=True),
    Column("request_id", String(128), primary_key=True),
    Column("action", String(64), nullable=False),
    # SHA-256 of the request, hex.
    Column("fingerprint", String(64), nullable=False),
    Column("subject", String(256), nullable=False),
    Column("at", UtcDateTime, nullable=False),
)


@dataclass(frozen=True, slots=True)
class DoneRequest:
    """A request that was carried out, and the id of what it made or changed."""

    action: str
    fingerprint: str
    subject: str


async def find(tx: Transaction, actor: str, request_id: str) -> DoneRequest | None:
    row = await tx.first(
        select(REQUESTS.c.action, REQUESTS.c.fingerprint, REQUESTS.c.subject).where(
            REQUESTS.c.actor == actor, REQUESTS.c.request_id == request_id
        )
    )
    return DoneRequest(*row) if row else None


async def remember(
    tx: Transaction, actor: str, request_id: str, done: DoneRequest, now: datetime
) -> None:
    """Record a request; raise StaleError if another replica carried it out meanwhile."""
    row = {
        "actor": actor,
        "request_id": request_id,
        "action": done.action,
        "fingerprint": done.fingerprint,
        "subject": done.subject,
        "at": now,
    }
    # Insert or ignore, then read back: on PostgreSQL a conflicting insert waits for the other
    # transaction, so exactly one of two replicas finds its own row.
    await tx.insert_new(REQUESTS, [row])
    if await find(tx, actor, request_id) != done:
        raise StaleError(
            f"request {request_id!r} was carried out meanwhile",
            advice="Send the same request again: it answers with what was done.",
        )


async def forget(tx: Transaction, before: datetime) -> int:
    return await tx.changed(delete(REQUESTS).where(REQUESTS.c.at < before))
