"""Windows that the server has not yet confirmed: bounded, and safe from a restart."""

import logging
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agent.telemetry.window import TelemetryWindow

log = logging.getLogger(__name__)

# At one window a minute and slot this is about a week of being offline.
DEFAULT_CAPACITY = 10_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS windows (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    boot_id TEXT NOT NULL,
    window BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS dropped (only INTEGER PRIMARY KEY CHECK (only = 1), count INTEGER);
INSERT OR IGNORE INTO dropped VALUES (1, 0);
"""


@dataclass(frozen=True, slots=True)
class QueuedWindow:
    """A window with the name under which the server stores it once."""

    boot_id: str
    sequence: int
    window: TelemetryWindow


class TelemetryQueue:
    """A SQLite file. Sequences rise over the file's whole life, so also within any boot id.

    Windows are worth less than a disk flush each: a power cut may lose the last ones
    (``synchronous=NORMAL`` with a write-ahead log), never the file.

    Safe to call from any thread: a connection must not be closed under a statement.
    """

    def __init__(self, path: Path, boot_id: str, *, capacity: int = DEFAULT_CAPACITY) -> None:
        self.boot_id = boot_id
        self._capacity = capacity
        # Since the start; a full disk keeps no count either.
        self._lost = 0
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.executescript(_SCHEMA)

    def append(self, window: TelemetryWindow) -> int | None:
        """Keeps a window, and drops the oldest beyond the capacity; its sequence.

        None, and counted as dropped, when the disk takes no more: what serves goes on serving.
        """
        try:
            return self._append(window)
        except sqlite3.Error as error:
            self._lost += 1
            log.warning("window_lost error=%s", ascii(str(error)))
            return None

    def _append(self, window: TelemetryWindow) -> int:
        with self._lock, self._database as transaction:
            transaction.execute("BEGIN IMMEDIATE")
            cursor = transaction.execute(
                "INSERT INTO windows (boot_id, window) VALUES (?, ?)",
                (self.boot_id, msgspec.msgpack.encode(window)),
            )
            dropped = transaction.execute(
                "DELETE FROM windows WHERE sequence <= "
                "(SELECT sequence FROM windows ORDER BY sequence DESC LIMIT 1 OFFSET ?)",
                (self._capacity,),
            ).rowcount
            if dropped:
                transaction.execute("UPDATE dropped SET count = count + ?", (dropped,))
        sequence = cursor.lastrowid
        if sequence is None:
            raise AssertionError("SQLite gives every inserted row an id")
        return sequence

    def pending(self, limit: int) -> list[QueuedWindow]:
        """The oldest unconfirmed windows, in order, all of one boot id."""
        rows = self._rows(
            "SELECT boot_id, sequence, window FROM windows WHERE boot_id = "
            "(SELECT boot_id FROM windows ORDER BY sequence LIMIT 1) ORDER BY sequence LIMIT ?",
            limit,
        )
        return [
            QueuedWindow(boot_id, sequence, msgspec.msgpack.decode(data, type=TelemetryWindow))
            for boot_id, sequence, data in rows
        ]

    def acknowledge(self, boot_id: str, sequence: int) -> None:
        """Forgets a boot's windows up to this sequence: the server has them for good."""
        self._rows("DELETE FROM windows WHERE boot_id = ? AND sequence <= ?", boot_id, sequence)

    @property
    def dropped(self) -> int:
        """How many windows the queue had no room for, ever, or the disk since the start."""
        ((count,),) = self._rows("SELECT count FROM dropped")
        return int(count) + self._lost

    def __len__(self) -> int:
        ((count,),) = self._rows("SELECT count(*) FROM windows")
        return int(count)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._database.close()

    def _rows(self, statement: str, *values: str | int) -> list[Any]:
        with self._lock:
            return self._database.execute(statement, values).fetchall()
