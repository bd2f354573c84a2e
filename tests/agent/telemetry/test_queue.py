import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.telemetry import TelemetryQueue

WINDOW = b"a window as it goes over the wire"


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[TelemetryQueue]:
    queue = TelemetryQueue(tmp_path / "telemetry.db", "boot-1", capacity=3)
    yield queue
    queue.close()


def test_windows_come_out_as_they_went_in(queue: TelemetryQueue) -> None:
    assert (queue.append(WINDOW), queue.append(b"another")) == (1, 2)
    assert [(q.boot_id, q.sequence, q.window) for q in queue.pending(10)] == [
        ("boot-1", 1, WINDOW),
        ("boot-1", 2, b"another"),
    ]
    assert len(queue.pending(1)) == 1


def test_confirmed_windows_are_forgotten(queue: TelemetryQueue) -> None:
    for _ in range(3):
        queue.append(WINDOW)
    queue.acknowledge("another-boot", 3)
    assert len(queue) == 3
    queue.acknowledge("boot-1", 2)
    assert [q.sequence for q in queue.pending(10)] == [3]


def test_a_full_disk_loses_and_counts_windows_and_raises_nothing(queue: TelemetryQueue) -> None:
    assert queue.append(WINDOW) == 1
    (pages,) = queue._database.execute("PRAGMA page_count").fetchone()
    queue._database.execute(f"PRAGMA max_page_count={pages}")
    kept = 1
    while queue.append(b"x" * 2000) is not None:
        kept += 1
    assert len(queue) == min(kept, 3)
    assert queue.dropped == max(kept - 3, 0) + 1


def test_the_oldest_are_dropped_and_counted(queue: TelemetryQueue) -> None:
    for _ in range(5):
        queue.append(WINDOW)
    assert [q.sequence for q in queue.pending(10)] == [3, 4, 5]
    assert queue.dropped == 2


def test_a_restart_loses_nothing_and_repeats_no_sequence(
    queue: TelemetryQueue, tmp_path: Path
) -> None:
    queue.append(WINDOW)
    queue.append(WINDOW)
    queue.acknowledge("boot-1", 2)
    queue.append(WINDOW)
    queue.close()
    later = TelemetryQueue(tmp_path / "telemetry.db", "boot-2", capacity=3)
    later.append(WINDOW)
    # A batch carries one boot id, the older one first.
    assert [(q.boot_id, q.sequence) for q in later.pending(10)] == [("boot-1", 3)]
    later.acknowledge("boot-1", 3)
    assert [(q.boot_id, q.sequence) for q in later.pending(10)] == [("boot-2", 4)]
    later.close()


def test_closing_waits_for_a_statement_under_way(tmp_path: Path) -> None:
    """Closing a connection during a statement crashes SQLite with a segmentation fault."""
    for name in range(20):
        queue = TelemetryQueue(tmp_path / f"{name}.db", "boot-1")
        for _ in range(50):
            queue.append(WINDOW)
        reading = threading.Event()

        def read(queue: TelemetryQueue = queue, reading: threading.Event = reading) -> None:
            with contextlib.suppress(sqlite3.ProgrammingError):  # closed in between
                while True:
                    queue.pending(50)
                    reading.set()

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        assert reading.wait(10)
        queue.close()
        for reader in readers:
            reader.join(10)
            assert not reader.is_alive()


def test_windows_in_the_encoding_of_an_older_agent_count_as_dropped(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.db"
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.execute(
            "CREATE TABLE windows (sequence INTEGER PRIMARY KEY, boot_id TEXT, window BLOB)"
        )
        old.executemany("INSERT INTO windows VALUES (?, 'boot-0', x'81')", [(1,), (2,)])
        old.commit()
    for _ in range(2):
        queue = TelemetryQueue(path, "boot-1")
        assert (queue.dropped, queue.pending(10)) == (2, [])
        queue.close()


def test_a_window_and_its_acknowledgement_write_little_to_flash(
    queue: TelemetryQueue, tmp_path: Path
) -> None:
    """The log of SQLite's default page size had 12 KiB per window, on every box that serves."""
    log = next(tmp_path.rglob("*-wal"))
    before = log.stat().st_size
    for _ in range(50):
        sequence = queue.append(bytes(450))
        assert sequence is not None
        queue.acknowledge(queue.boot_id, sequence)
    assert (log.stat().st_size - before) / 50 <= 5 << 10
