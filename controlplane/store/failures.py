"""Failures of the storage below the database: a full disk, a lost connection.

They are expected in operation, so they get types, a status of their own and one log line per
change of state instead of a traceback per call.
"""

import logging
import shutil
import sqlite3
from enum import StrEnum
from pathlib import Path
from typing import Final

from sqlalchemy.exc import DBAPIError, InterfaceError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from controlplane.disk import disk_full, is_no_space
from controlplane.errors import DatabaseUnavailableError, StorageError, StorageFullError

log = logging.getLogger(__name__)

# SQLite needs room for the shared-memory file and a few frames; below this, its I/O errors come
# from a lack of space (it reports some of them without the errno).
LEAST_FREE_BYTES: Final = 1 << 20
_SQLITE_AWAY: Final = frozenset(
    {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY}
)
# SQLSTATE: 53100 disk full; classes 08 and 57 connection lost, server stopping or starting; 53300
# too many connections; 25006 read-only (a standby).
_DISK_FULL: Final = "53100"
_AWAY_CLASSES: Final = ("08", "57P")
_AWAY: Final = frozenset({"53300", "25006"})


class StorageState(StrEnum):
    """State of the storage, as log lines and /readyz name it."""

    OK = "ok"
    DISK_FULL = "disk_full"
    UNAVAILABLE = "database_unavailable"


class StorageHealth:
    """The last known state, logged once per change. ``path`` is the embedded database's file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.state = StorageState.OK

    def failed(self, error: StorageError) -> None:
        is_full = isinstance(error, StorageFullError)
        self._enter(StorageState.DISK_FULL if is_full else StorageState.UNAVAILABLE, str(error))

    def read(self) -> None:
        """Record a successful read, which a full disk allows too."""
        if self.state is StorageState.UNAVAILABLE:
            self._enter(StorageState.OK, "")

    def written(self) -> None:
        """Record a successful commit."""
        # On a full disk a small commit may fit into the log's old frames, and the next one not:
        # without this the state would change with every other call.
        still_full = (
            self.state is StorageState.DISK_FULL
            and self._path is not None
            and _free_bytes(self._path) < LEAST_FREE_BYTES
        )
        if not still_full:
            self._enter(StorageState.OK, "")

    def _enter(self, state: StorageState, detail: str) -> None:
        if state is self.state:
            return
        self.state = state
        level = logging.INFO if state is StorageState.OK else logging.ERROR
        log.log(level, "storage_state state=%s detail=%s", state, ascii(detail)[1:-1][:300])


def typed(error: Exception, path: Path | None, *, connecting: bool) -> StorageError | None:
    """Return the storage failure behind an exception; None if it is a different fault.

    ``path`` is the file of the embedded database. Bare OS errors count only while ``connecting``,
    because the body of a transaction may raise its own.
    """
    if isinstance(error, StorageError):
        return error
    if is_no_space(error):
        return disk_full(str(error))
    if isinstance(error, PoolTimeoutError) or (connecting and isinstance(error, OSError)):
        return _away(error)
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return _of_sqlite(cause, path)
    if isinstance(error, SQLAlchemyError):
        return _of_postgres(error, cause)
    return None


def _of_sqlite(error: sqlite3.Error, path: Path | None) -> StorageError | None:
    # The low byte is the primary code; the rest says which call failed.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return disk_full(str(error))
    if code not in _SQLITE_AWAY:
        return None
    if path is not None and _free_bytes(path) < LEAST_FREE_BYTES:
        return disk_full(str(error))
    return _away(error)


def _of_postgres(error: SQLAlchemyError, cause: BaseException | None) -> StorageError | None:
    sqlstate = str(getattr(cause, "sqlstate", None) or "")
    if sqlstate == _DISK_FULL:
        return disk_full(str(cause))
    invalidated = isinstance(error, DBAPIError) and error.connection_invalidated
    if invalidated or sqlstate in _AWAY or sqlstate.startswith(_AWAY_CLASSES):
        return _away(error)
    # asyncpg reports a connection that broke during a statement without a SQLSTATE.
    return _away(error) if isinstance(error, InterfaceError) else None


def _away(error: Exception) -> DatabaseUnavailableError:
    text = str(error).partition("\n")[0]
    return DatabaseUnavailableError(
        f"database_unavailable: the database does not answer ({text[:200]})",
        advice="Try again; if it stays so, look at the database and at the server's log.",
    )


def _free_bytes(path: Path) -> int:
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return LEAST_FREE_BYTES
