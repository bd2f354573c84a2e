"""The journal returns complete records, also after the process was killed."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.errors import JournalError
from agent.journal import (
    Assignment,
    CheckResult,
    HeldRelease,
    Journal,
    Pointers,
    Receipt,
    SlotPlan,
    Update,
    reference_of,
)
from agent.selection import Candidate, Decision
from artifact.manifest import Objective

DECISION = Decision(
    slot="chat",
    model="acme/m@1",
    objective=Objective.QUALITY,
    memory_budget_bytes=10,
    min_tokens_per_second=0,
    max_candidates=3,
    candidates=(
        Candidate(
            variant="q4",
            runtime="fake",
            quantization="q4",
            bucket="ranked",
            reason="fits",
            predicted_memory_bytes=5,
            measured_joules_per_token=0.25,
        ),
    ),
    reason="1 of 1 fits",
)
CHECK = CheckResult(slot="chat", name="talks", outcome="passed", detail="")
UPDATE = Update(
    assignment=Assignment(generation=7, release="acme/a@1", manifest_sha256="0" * 64),
    state="probation",
    stores={"fetching": 2},
    received_bytes=12,
)


def held(reference: str) -> HeldRelease:
    return HeldRelease(
        reference=reference,
        manifest=b"{}",
        manifest_sha256="0" * 64,
        slots={"chat": SlotPlan(decision=DECISION, variant="q4", checks={"q4": (CHECK,)})},
    )


def receipt(generation: int) -> Receipt:
    return Receipt(
        generation=generation,
        release="acme/a@1",
        outcome="committed",
        reason="",
        detail="",
        received_bytes=1,
        switch_seconds=0.5,
        decisions=(DECISION,),
        checks=(CHECK,),
        finished_at=datetime(2026, 1, 1, tzinfo=UTC),
        current_release="acme/a@1",
        last_good_release="",
    )


def test_a_new_journal_is_empty(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    assert journal.update() is None
    assert journal.pointers() == Pointers()
    assert journal.receipts() == []
    assert journal.floors() == {}
    journal.close()


def test_what_was_recorded_is_there_after_reopening(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    pointers = Pointers(candidate=held("acme/a@2"), current=held("acme/a@1"))
    journal.record(update=UPDATE, pointers=pointers, receipt=receipt(7))
    journal.close()
    again = Journal(tmp_path / "journal.db")
    assert again.update() == UPDATE
    assert again.pointers() == pointers
    assert again.receipts() == [receipt(7)]
    again.close()


def test_receipts_stay_until_acknowledged_and_come_oldest_first(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    for generation in (3, 1, 2):
        journal.record(receipt=receipt(generation))
    journal.acknowledge([1, 99])
    assert [each.generation for each in journal.receipts()] == [2, 3]
    journal.close()


def test_what_has_served_here_is_proven_and_a_candidate_is_not() -> None:
    pointers = Pointers(
        candidate=held("acme/a@3"), current=held("acme/a@2"), last_good=held("acme/a@1")
    )
    assert pointers.proven("acme/a@1") == held("acme/a@1")
    assert pointers.proven("acme/a@2") == held("acme/a@2")
    assert pointers.proven("acme/a@3") is None


def test_floors_only_rise(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.raise_floors({"timestamp": 5, "acme": 2})
    journal.raise_floors({"timestamp": 4, "other": 1})
    assert journal.floors() == {"timestamp": 5, "acme": 2, "other": 1}
    journal.close()


def test_a_record_that_fails_changes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.record(update=UPDATE)
    unwritable = held(object())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        journal.record(
            update=Update(assignment=UPDATE.assignment, state="switching"),
            pointers=Pointers(current=unwritable),
        )
    assert journal.update() == UPDATE
    journal.close()


def test_a_killed_process_leaves_its_last_record_whole(tmp_path: Path) -> None:
    script = (
        "import sys, itertools; from pathlib import Path;"
        "from agent.journal import *;"
        "j = Journal(Path(sys.argv[1]));\n"
        "for n in itertools.count(1):\n"
        "    a = Assignment(generation=n, release=f'acme/a@{n}', manifest_sha256='0' * 64)\n"
        "    h = HeldRelease(reference=a.release, manifest=b'', manifest_sha256='')\n"
        "    j.record(update=Update(assignment=a, state='idle'), pointers=Pointers(current=h))\n"
        "    print(n, flush=True)\n"
    )
    path = tmp_path / "journal.db"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 20:
                break
        os.kill(writer.pid, signal.SIGKILL)
    journal = Journal(path)
    update = journal.update()
    assert update is not None
    assert update.assignment.generation >= 20
    assert reference_of(journal.pointers().current) == update.assignment.release
    journal.close()


def test_a_file_that_is_no_journal_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(JournalError) as refused:
        Journal(path)
    assert "enrol the box again" in refused.value.advice


def test_a_journal_of_a_newer_agent_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version=99")
    database.close()
    with pytest.raises(JournalError, match="99"):
        Journal(path)


def test_who_asks_first_does_not_undo_what_another_thread_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.record(pointers=Pointers(current=held("acme/a@1")))
    journal.close()
    journal = Journal(tmp_path / "journal.db")
    reading, recorded = threading.Event(), threading.Event()
    document = journal._document

    def slow(name: str, kind: Any) -> Any:
        found = document(name, kind)
        if name == "last_good":
            reading.set()
            recorded.wait()
        return found

    monkeypatch.setattr(journal, "_document", slow)
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(journal.pointers)
        told: list[Future[Any]] = [asking, pool.submit(reading.wait)]
        wait(told, return_when=FIRST_COMPLETED)
        journal.record(pointers=Pointers(current=held("acme/a@2")))
        recorded.set()
        reading.set()
    assert reference_of(journal.pointers().current) == "acme/a@2"
    journal.close()


def test_the_journal_and_its_copy_are_private(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.record(update=UPDATE)
    assert (tmp_path / "journal.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "journal-copy").stat().st_mode & 0o777 == 0o700
    journal.close()


def test_a_receipt_that_is_acknowledged_is_deleted_from_the_disk(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    for generation in (1, 2):
        journal.record(receipt=receipt(generation))
    journal.acknowledge([1])
    journal.close()
    database = sqlite3.connect(tmp_path / "journal.db")
    assert database.execute("SELECT generation FROM receipts").fetchall() == [(2,)]
    database.close()


def test_an_update_begins_without_counts() -> None:
    update = Update(assignment=UPDATE.assignment, state="verifying")
    assert (update.received_bytes, update.switch_seconds) == (0, 0.0)


def test_the_database_serves_several_threads(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(journal.record, update=UPDATE).result()
    assert journal.update() == UPDATE
    journal.close()


def test_a_floor_begins_at_the_first_version(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.raise_floors({"timestamp": 0})
    assert journal.floors() == {"timestamp": 0}
    journal.close()
