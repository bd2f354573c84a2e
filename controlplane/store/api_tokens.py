"""API tokens: bearer tokens of operators and their tools, with a role."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Boolean, Column, String, Table, insert, or_, select, update

from controlplane.errors import NotFoundError
from controlplane.store.database import AnyRow, Transaction
from controlplane.store.paging import Page, PageRequest, fetch_page
from controlplane.store.schema import METADATA, UtcDateTime

API_TOKENS: Final = Table(
    "api_tokens",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("name", String(63), nullable=False),
    Column("role", String(16), nullable=False),
    Column("secret_sha256", String(64), nullable=False, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked", Boolean, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiToken:
    """An API token without its secret; ``expires_at`` None means never."""

    id: str
    name: str
    role: str
    secret_sha256: str
    created_at: datetime
    expires_at: datetime | None
    revoked: bool


def _token(row: AnyRow) -> ApiToken:
    return ApiToken(**row._mapping)  # noqa: SLF001 - the documented way to a row's names


async def add(tx: Transaction, token: ApiToken) -> None:
    row = {column.name: getattr(token, column.name) for column in API_TOKENS.columns}
    await tx.execute(insert(API_TOKENS), row)


async def get(tx: Transaction, token_id: str) -> ApiToken:
    row = await tx.first(select(API_TOKENS).where(API_TOKENS.c.id == token_id))
    if row is None:
        raise NotFoundError(
            f"there is no API token {token_id[:80]!r}",
            advice="`flotilla access token list` shows all.",
        )
    return _token(row)


async def other_usable(tx: Transaction, role: str, token_id: str, now: datetime) -> bool:
    """Return whether another token of this role is neither revoked nor expired."""
    column = API_TOKENS.c
    valid = or_(column.expires_at.is_(None), column.expires_at > now)
    statement = select(column.id).where(
        column.role == role, column.id != token_id, ~column.revoked, valid
    )
    # Locks that row on PostgreSQL, so that two admins cannot revoke each other at once.
    return await tx.first(statement.limit(1).with_for_update()) is not None


async def find_by_secret(tx: Transaction, secret_sha256: str) -> ApiToken | None:
    row = await tx.first(select(API_TOKENS).where(API_TOKENS.c.secret_sha256 == secret_sha256))
    return _token(row) if row else None


async def any_exists(tx: Transaction) -> bool:
    return await tx.first(select(API_TOKENS.c.id).limit(1)) is not None


async def page(tx: Transaction, request: PageRequest) -> Page[ApiToken]:
    """Return a page, newest first."""
    return await fetch_page(
        tx, select(API_TOKENS), API_TOKENS.c.id, request, _token, newest_first=True
    )


async def revoke(tx: Transaction, token_id: str) -> None:
    await tx.execute(update(API_TOKENS).where(API_TOKENS.c.id == token_id).values(revoked=True))
