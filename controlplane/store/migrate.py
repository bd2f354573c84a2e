"""Migration of a database to this version's tables and back, with Alembic.

Servers of the previous release may work on the database meanwhile: migrations only add, with
defaults, and each changes at most one existing table in a transaction of its own, so that its locks
are short and cannot deadlock with a server's transaction.
"""

import logging
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, select

from controlplane.errors import InvalidInputError
from controlplane.store.database import Database, Transaction

log = logging.getLogger(__name__)

MIGRATIONS: Final = Path(__file__).parent / "migrations"
# An arbitrary advisory lock number of our own: replicas that start together migrate in turn.
_LOCK: Final = 0x464C4D49


def configuration(connection: Connection) -> Config:
    config = _config()
    config.attributes["connection"] = connection
    return config


def _config() -> Config:
    config = Config()
    # Alembic reads % as the start of an interpolation.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def revisions() -> list[str]:
    """Return the ids of all migrations of this version, in order."""
    newest_first = ScriptDirectory.from_config(_config()).walk_revisions()
    return [script.revision for script in newest_first][::-1]


async def revision(database: Database) -> str | None:
    """Return the id of the last migration that the database has had; None without tables."""
    async with database.engine.connect() as connection:
        return await connection.run_sync(_revision)


async def migrate(database: Database, to: str | None = None) -> None:
    """Run the pending migrations, up to and including ``to`` (None: all).

    A database of a later version is left as it is: later migrations only add to it.
    """
    known = revisions()
    wanted = known.index(to) if to is not None else len(known) - 1
    # Usually nothing is due; a write transaction would need room on the disk.
    if await revision(database) == known[wanted]:
        return
    while True:
        async with database.write() as tx:
            now = await _locked_revision(tx)
            if now is not None and now not in known:
                log.warning("schema_is_newer revision=%s known=%s", now, known[-1])
                return
            done = -1 if now is None else known.index(now)
            if done >= wanted:
                return
            following = known[done + 1]
            await tx.run_sync(
                lambda sync, to=following: command.upgrade(configuration(sync), to)  # type: ignore[misc]
            )


async def downgrade(database: Database, to: str) -> None:
    """Undo the migrations after ``to``, for an older version of the server.

    What only the later columns and tables held is lost. Raises InvalidInputError if this version
    does not know ``to``, or the database's own revision.
    """
    known = revisions()
    if to not in known:
        raise InvalidInputError(
            f"there is no schema {to[:40]!r}; this version knows {known[0]} to {known[-1]}",
            advice="The changelog names the schema of each version.",
        )
    while True:
        async with database.write() as tx:
            now = await _locked_revision(tx)
            if now is None or now not in known:
                raise InvalidInputError(
                    f"the database has the schema {now}; this version knows up to {known[-1]}",
                    advice="Take it back with the version of the server that migrated it.",
                )
            if known.index(now) <= known.index(to):
                return
            below = known[known.index(now) - 1]
            await tx.run_sync(
                lambda sync, to=below: command.downgrade(configuration(sync), to)  # type: ignore[misc]
            )
            log.info("schema_downgraded revision=%s", below)


async def _locked_revision(tx: Transaction) -> str | None:
    if tx.dialect == "postgresql":
        await tx.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    return await tx.run_sync(_revision)


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()
