"""The queue of windows that the server has not acknowledged: bounded, and kept across restarts."""

import logging
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

# About a week offline, at one window per minute and slot.
DEFAULT_CAPACITY = 10_000
# A transaction writes whole pages, to the log and later to the file. Measured with a window every
# 15 s: 62 MiB a day, and 107 MiB with SQLite's default of 4 KiB, which existing files keep.
PAGE_BYTES = 1024

_SCHEMA = """
CREATE TABLE IF NOT EXISTS wire_windows (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    boot_id TEXT NOT NULL,
    window BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS dropped (only INTEGER PRIMARY KEY CHECK (only = 1), count INTEGER);
INSERT OR IGNORE INTO dropped VALUES (1, 0);
"""
# Agents before 0.2 queued their own encoding in a table `windows`, which no longer can be read.
_DROP_OLD = """
UPDATE dropped SET count = count + (SELECT count(*) FROM windows);
DROP TABLE windows;
"""


@dataclass(frozen=True, slots=True)
class QueuedWindow:
    """An encoded window and its key: the server stores a (boot id, sequence) once."""

    boot_id: str
    sequence: int
    window: bytes


class TelemetryQueue:
    """Encoded windows (flotilla.v1.TelemetryWindow) in a SQLite file.

    Windows are queued as they go over the wire, so that an update of the agent can read what the
    previous version queued. Sequences increase over the lifetime of the file, hence also within a
    boot id.

    ``synchronous=NORMAL`` with a write-ahead log: a power cut may lose the last windows, never the
    file. A window is not worth a disk flush.

    Safe to call from any thread. The lock also keeps ``close`` from running during a statement,
    which would crash SQLite.
    """

    def __init__(self, path: Path, boot_id: str, *, capacity: int = DEFAULT_CAPACITY) -> None:
        self.boot_id = boot_id
        self._capacity = capacity
        # Windows lost since the start; not in the file, because a full disk lost them.
        self._lost = 0
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute(f"PRAGMA page_size={PAGE_BYTES}")
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.executescript(_SCHEMA)
        if self._rows("SELECT 1 FROM sqlite_master WHERE name = 'windows'"):
            self._database.executescript(_DROP_OLD)

    def append(self, window: bytes) -> int | None:
        """Store a window and drop the oldest beyond the capacity; return the window's sequence.

        None if it cannot be stored, as on a full disk; the window then counts as dropped.
        """
        try:
            return self._append(window)
        except sqlite3.Error as error:
            self._lost += 1
            log.warning("window_lost error=%s", ascii(str(error)))
            return None

    def _append(self, window: bytes) -> int:
        with self._lock, self._database as transaction:
            transaction.execute("BEGIN IMMEDIATE")
            cursor = transaction.execute(
                "INSERT INTO wire_windows (boot_id, window) VALUES (?, ?)", (self.boot_id, window)
            )
            dropped = transaction.execute(
                "DELETE FROM wire_windows WHERE sequence <= "
                "(SELECT sequence FROM wire_windows ORDER BY sequence DESC LIMIT 1 OFFSET ?)",
                (self._capacity,),
            ).rowcount
            if dropped:
                transaction.execute("UPDATE dropped SET count = count + ?", (dropped,))
        sequence = cursor.lastrowid
        if sequence is None:
            raise AssertionError("SQLite returned no row id for an INSERT")
        return sequence

    def pending(self, limit: int) -> list[QueuedWindow]:
        """Return the oldest unacknowledged windows of one boot id, in order."""
        rows = self._rows(
            "SELECT boot_id, sequence, window FROM wire_windows WHERE boot_id = "
            "(SELECT boot_id FROM wire_windows ORDER BY sequence LIMIT 1) "
            "ORDER BY sequence LIMIT ?",
            limit,
        )
        return [QueuedWindow(*row) for row in rows]

    def acknowledge(self, boot_id: str, sequence: int) -> None:
        """Delete a boot's windows up to this sequence, which the server has stored."""
        self._rows(
            "DELETE FROM wire_windows WHERE boot_id = ? AND sequence <= ?", boot_id, sequence
        )

    @property
    def dropped(self) -> int:
        """Windows dropped beyond the capacity ever, and lost to the disk since the start."""
        ((count,),) = self._rows("SELECT count FROM dropped")
        return int(count) + self._lost

    def __len__(self) -> int:
        ((count,),) = self._rows("SELECT count(*) FROM wire_windows")
        return int(count)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def _rows(self, statement: str, *values: str | int) -> list[Any]:
        with self._lock:
            return self._database.execute(statement, values).fetchall()
