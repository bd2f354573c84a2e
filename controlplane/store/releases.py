"""Published releases: immutable, stored as the bytes that their publisher signed."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, Column, LargeBinary, String, Table, insert, select

from controlplane.errors import NotFoundError
from controlplane.store.database import BATCH_IDS, AnyRow, Transaction, batches
from controlplane.store.paging import Page, PageRequest, fetch_page
from controlplane.store.schema import METADATA, UtcDateTime

RELEASES: Final = Table(
    "releases",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("reference", String(256), nullable=False, unique=True),
    Column("counter", BigInteger, nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("published_at", UtcDateTime, nullable=False),
)


@dataclass(frozen=True, slots=True)
class StoredRelease:
    """A published release; ``manifest`` decodes with artifact.manifest.decode_release."""

    id: str
    reference: str
    counter: int
    manifest: bytes
    manifest_sha256: str
    published_at: datetime


def _release(row: AnyRow) -> StoredRelease:
    return StoredRelease(**row._mapping)  # noqa: SLF001 - the documented way to a row's names


async def add(tx: Transaction, release: StoredRelease) -> None:
    row = {column.name: getattr(release, column.name) for column in RELEASES.columns}
    await tx.execute(insert(RELEASES), row)


async def find(tx: Transaction, reference: str) -> StoredRelease | None:
    row = await tx.first(select(RELEASES).where(RELEASES.c.reference == reference))
    return _release(row) if row else None


async def get(tx: Transaction, reference: str) -> StoredRelease:
    """Return the release; raise NotFoundError if the reference was never published."""
    release = await find(tx, reference)
    if release is None:
        raise NotFoundError(
            f"there is no release {reference[:120]!r}",
            advice="`flotilla release list` shows what is published.",
        )
    return release


async def digests(tx: Transaction, references: Collection[str]) -> dict[str, str]:
    """Return the manifests' SHA-256 of those references that are published."""
    statement = select(RELEASES.c.reference, RELEASES.c.manifest_sha256)
    found: dict[str, str] = {}
    for batch in batches(sorted(references), BATCH_IDS):
        rows = await tx.all(statement.where(RELEASES.c.reference.in_(batch)))
        found.update((row.reference, row.manifest_sha256) for row in rows)
    return found


async def page(tx: Transaction, request: PageRequest) -> Page[StoredRelease]:
    """Return a page, newest first."""
    return await fetch_page(
        tx, select(RELEASES), RELEASES.c.id, request, _release, newest_first=True
    )
