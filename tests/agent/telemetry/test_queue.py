import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.power.energy import Energy, Provenance
from agent.telemetry import Labels, Sketch, TelemetryQueue, TelemetryWindow

WINDOW = TelemetryWindow(
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    duration_seconds=10,
    labels=Labels("demo/fleet@1", "chat", "demo/llm@1", "q4", "llama_cpp"),
    requests=3,
    errors=1,
    prompt_tokens=10,
    generated_tokens=20,
    prefill_seconds=0.5,
    decode_seconds=1.5,
    ttft_seconds=Sketch(bins={-3: 2, 7: 1}, sum=4.5),
    latency_seconds=Sketch(zeros=1),
    peak_memory_bytes=1 << 30,
    energy=Energy(12.5, Provenance("rapl", "package", "counter")),
)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[TelemetryQueue]:
    queue = TelemetryQueue(tmp_path / "telemetry.db", "boot-1", capacity=3)
    yield queue
    queue.close()


def test_windows_come_out_as_they_went_in(queue: TelemetryQueue) -> None:
    unmeasured = replace(WINDOW, energy=None)
    assert (queue.append(WINDOW), queue.append(unmeasured)) == (1, 2)
    assert [(q.boot_id, q.sequence, q.window) for q in queue.pending(10)] == [
        ("boot-1", 1, WINDOW),
        ("boot-1", 2, unmeasured),
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
    while queue.append(replace(WINDOW, labels=Labels("x" * 2000, "", "", "", ""))) is not None:
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
    # One batch carries one boot id: the older one first.
    assert [(q.boot_id, q.sequence) for q in later.pending(10)] == [("boot-1", 3)]
    later.acknowledge("boot-1", 3)
    assert [(q.boot_id, q.sequence) for q in later.pending(10)] == [("boot-2", 4)]
    later.close()


def test_closing_waits_for_a_statement_under_way(tmp_path: Path) -> None:
    """Closed under a statement, SQLite ends the whole process (a segmentation fault)."""
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
