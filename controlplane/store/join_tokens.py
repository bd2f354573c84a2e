"""Join tokens admit new devices, a limited number of times and until they expire."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Boolean, Column, ForeignKey, Integer, String, Table, insert, select, update

from controlplane.errors import NotFoundError, StaleError
from controlplane.store.database import AnyRow, Transaction
from controlplane.store.paging import Page, PageRequest, fetch_page
from controlplane.store.schema import METADATA, Json, UtcDateTime

JOIN_TOKENS: Final = Table(
    "join_tokens",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("secret_sha256", String(64), nullable=False, unique=True),
    Column("uses_left", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("revoked", Boolean, nullable=False),
    Column("labels", Json, nullable=False),
)
# The key of each use, so that the same key may ask again after a lost reply.
JOIN_TOKEN_USES: Final = Table(
    "join_token_uses",
    METADATA,
    Column("token_id", String(32), ForeignKey("join_tokens.id"), primary_key=True),
    Column("key_sha256", String(64), primary_key=True),
    Column("device_id", String(32), ForeignKey("devices.id"), nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinToken:
    """A join token without its secret. Devices that join with it get ``labels``."""

    id: str
    secret_sha256: str
    uses_left: int
    created_at: datetime
    expires_at: datetime
    revoked: bool
    labels: dict[str, str]


def _token(row: AnyRow) -> JoinToken:
    return JoinToken(**row._mapping)  # noqa: SLF001 - the documented way to a row's names


async def add(tx: Transaction, token: JoinToken) -> None:
    row = {column.name: getattr(token, column.name) for column in JOIN_TOKENS.columns}
    await tx.execute(insert(JOIN_TOKENS), row)


async def get(tx: Transaction, token_id: str) -> JoinToken:
    row = await tx.first(select(JOIN_TOKENS).where(JOIN_TOKENS.c.id == token_id))
    if row is None:
        raise NotFoundError(
            f"there is no join token {token_id[:80]!r}", advice="`flotilla token list` shows all."
        )
    return _token(row)


async def find_by_secret(tx: Transaction, secret_sha256: str) -> JoinToken | None:
    row = await tx.first(select(JOIN_TOKENS).where(JOIN_TOKENS.c.secret_sha256 == secret_sha256))
    return _token(row) if row else None


async def page(tx: Transaction, request: PageRequest) -> Page[JoinToken]:
    """Return a page, newest first."""
    return await fetch_page(
        tx, select(JOIN_TOKENS), JOIN_TOKENS.c.id, request, _token, newest_first=True
    )


async def device_of_use(tx: Transaction, token_id: str, key_sha256: str) -> str | None:
    """Return the id of the device that joined with this token and key."""
    row = await tx.first(
        select(JOIN_TOKEN_USES.c.device_id).where(
            JOIN_TOKEN_USES.c.token_id == token_id, JOIN_TOKEN_USES.c.key_sha256 == key_sha256
        )
    )
    return row.device_id if row else None


async def use(tx: Transaction, token_id: str, key_sha256: str, device_id: str) -> None:
    """Spend one use on this key; raise StaleError if none is left."""
    # Decremented by the database, under the condition: two devices cannot take the last use.
    spent = await tx.changed(
        update(JOIN_TOKENS)
        .where(JOIN_TOKENS.c.id == token_id, JOIN_TOKENS.c.uses_left > 0)
        .values(uses_left=JOIN_TOKENS.c.uses_left - 1)
    )
    if not spent:
        raise StaleError(
            f"the last use of join token {token_id} was spent meanwhile",
            advice="Make a new one with `flotilla token create`.",
        )
    row = {"token_id": token_id, "key_sha256": key_sha256, "device_id": device_id}
    await tx.execute(insert(JOIN_TOKEN_USES), row)


async def revoke(tx: Transaction, token_id: str) -> None:
    await tx.execute(update(JOIN_TOKENS).where(JOIN_TOKENS.c.id == token_id).values(revoked=True))
