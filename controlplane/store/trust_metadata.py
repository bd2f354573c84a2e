"""Signed metadata files of the image repository; every version is kept."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, Column, LargeBinary, String, Table, func, insert, select

from artifact.trust.metadata import Roles, file_name, version_of
from controlplane.store.database import Transaction
from controlplane.store.schema import METADATA, UtcDateTime

TRUST_METADATA: Final = Table(
    "trust_metadata",
    METADATA,
    Column("role", String(64), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    # The file name in requests. All versions of timestamp share one; the newest counts.
    Column("name", String(96), nullable=False, index=True),
    Column("data", LargeBinary, nullable=False),
    Column("stored_at", UtcDateTime, nullable=False),
)


async def add(tx: Transaction, roles: Mapping[str, bytes], now: datetime) -> None:
    """Add the next version of each of these roles."""
    rows = [
        {
            "role": role,
            "version": version_of(role, data),
            "name": file_name(role, data),
            "data": data,
            "stored_at": now,
        }
        for role, data in roles.items()
    ]
    if rows:
        await tx.execute(insert(TRUST_METADATA), rows)


async def current(tx: Transaction) -> Roles:
    """Return the newest metadata of every role; empty before trust was initialised."""
    newest = (
        select(TRUST_METADATA.c.role, func.max(TRUST_METADATA.c.version).label("version"))
        .group_by(TRUST_METADATA.c.role)
        .subquery()
    )
    rows = await tx.all(
        select(TRUST_METADATA.c.role, TRUST_METADATA.c.data).join(
            newest,
            (TRUST_METADATA.c.role == newest.c.role)
            & (TRUST_METADATA.c.version == newest.c.version),
        )
    )
    return {row.role: row.data for row in rows}


async def file(tx: Transaction, name: str) -> bytes | None:
    """Return a file by the name that agents request: timestamp.json, 3.root.json, 7.acme.json."""
    row = await tx.first(
        select(TRUST_METADATA.c.data)
        .where(TRUST_METADATA.c.name == name)
        .order_by(TRUST_METADATA.c.version.desc())
        .limit(1)
    )
    return row.data if row else None
