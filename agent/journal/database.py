"""The journal's first copy: SQLite in WAL mode with ``synchronous=FULL``.

A transaction that returned survives a power cut. SQLite has checksums only in its log, so every row
carries its own. On opening, all of them and the file's structure are checked: a changed byte is an
error, never a different value.
"""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agent.journal.contents import VERSION, Contents, is_known
from agent.storage.atomic_file import sync_directory

# ``sum`` is the SHA-256 of the row's key and body.
SCHEMA: Final = """
CREATE TABLE documents (name TEXT PRIMARY KEY, body BLOB NOT NULL, sum BLOB NOT NULL) STRICT;
CREATE TABLE receipts (generation INTEGER PRIMARY KEY, body BLOB NOT NULL, sum BLOB NOT NULL)
    STRICT;
"""
# SQLite's codes for damaged bytes and bad sectors. A full disk or a lock has other codes; these
# causes pass, and the database must not be replaced for them.
_DAMAGE: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_IOERR_CORRUPTFS,
        sqlite3.SQLITE_IOERR_READ,
        sqlite3.SQLITE_IOERR_SHORT_READ,
        sqlite3.SQLITE_NOTADB,
    }
)
Key = str | int


class DamagedError(Exception):
    """The file does not hold what was written to it."""


class Database:
    """One connection to the file. Callers serialise access between threads."""

    def __init__(self, path: Path) -> None:
        """Open or create the file; DamagedError, or sqlite3.Error for causes that may pass."""
        try:
            try:
                self._open(path)
            except sqlite3.OperationalError:
                # On a full disk WAL mode cannot create its shared-memory file. Exclusive locking
                # needs none, so the journal can still be read and serving resumes.
                self._open(path, "PRAGMA locking_mode=EXCLUSIVE")
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code is not None and {code, code & 0xFF} & _DAMAGE:
                raise DamagedError(str(error)) from error
            raise
        except UnicodeDecodeError as error:
            # SQLite's message about a damaged schema quotes its bytes, which may not be UTF-8.
            raise DamagedError(ascii(error.object[:100])) from error
        path.chmod(0o600)

    def _open(self, path: Path, *first: str) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            for pragma in (*first, "PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL"):
                self.connection.execute(pragma)
            if self._version() == 0:
                script = f"BEGIN;{SCHEMA}PRAGMA user_version={VERSION};COMMIT;"
                self.connection.executescript(script)
            self.contents = self._checked()
        except BaseException:
            self.connection.close()
            raise

    def _version(self) -> int:
        (version,) = self.connection.execute("PRAGMA user_version").fetchone()
        return int(version)

    def _checked(self) -> Contents:
        """Read and verify everything; only the version if it is unknown. DamagedError."""
        empty = Contents(version=self._version())
        if not is_known(empty):
            return empty
        # A query does not notice rows that damage made unreachable; this check does.
        (fault,) = self.connection.execute("PRAGMA integrity_check(1)").fetchone()
        if fault != "ok":
            raise DamagedError(fault)
        found: dict[str, dict[Key, bytes]] = {}
        for table, key in (("documents", "name"), ("receipts", "generation")):
            rows = self.connection.execute(f"SELECT {key}, body, sum FROM {table} ORDER BY {key}")  # noqa: S608 - ours
            found[table] = {}
            for name, body, stored_sum in rows.fetchall():
                if stored_sum != _sum(name, body):
                    raise DamagedError(f"the checksum of {name!a} does not match")
                found[table][name] = body
        return Contents(version=empty.version, **found)  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def write(self, old: Contents, new: Contents) -> None:
        """Change ``old`` into ``new`` in one durable transaction; sqlite3.Error."""
        with self._transaction():
            for table, before, after in (
                ("documents", old.documents, new.documents),
                ("receipts", old.receipts, new.receipts),
            ):
                self._write_rows(table, before, after)  # type: ignore[arg-type]
            if old.version != new.version:
                self.connection.execute(f"PRAGMA user_version={new.version}")

    def _write_rows(self, table: str, before: dict[Key, bytes], after: dict[Key, bytes]) -> None:
        key = "name" if table == "documents" else "generation"
        self.connection.executemany(
            f"DELETE FROM {table} WHERE {key} = ?",  # noqa: S608 - ours
            [(name,) for name in before.keys() - after.keys()],
        )
        self.connection.executemany(
            f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)",  # noqa: S608 - ours
            [
                (name, body, _sum(name, body))
                for name, body in after.items()
                if before.get(name) != body
            ],
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise


def set_aside(path: Path) -> None:
    """Rename a damaged database, so that it can be examined later."""
    # The log first: after a crash in between, a log must not remain beside a new database, since
    # SQLite would replay it into that one.
    for suffix in ("-wal", "-shm", ""):
        found = path.with_name(f"{path.name}{suffix}")
        if found.exists():
            found.replace(path.with_name(f"{path.name}.damaged{suffix}"))
    sync_directory(path.parent)


def _sum(key: Key, body: bytes) -> bytes:
    return hashlib.sha256(f"{key}\n".encode() + body).digest()
