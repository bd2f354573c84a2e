"""Damage to one of the journal's copies loses no record and lowers no floor."""

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent.errors import JournalError
from agent.journal import Assignment, HeldRelease, Journal, Pointers, Update
from agent.journal.contents import VERSION, Contents
from agent.journal.database import DamagedError, Database
from agent.journal.duplicate import Duplicate

HELD = HeldRelease(reference="acme/a@1", manifest=b"{}" * 500, manifest_sha256="0" * 64)
POINTERS = Pointers(current=HELD)


def update(generation: int) -> Update:
    assignment = Assignment(generation=generation, release="acme/a@1", manifest_sha256="0" * 64)
    return Update(assignment=assignment, state="idle")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The journal of a box that serves a release and has verified metadata."""
    journal = Journal(tmp_path / "journal.db")
    journal.record(update=update(1), pointers=POINTERS)
    journal.raise_floors({"image/timestamp": 7})
    journal.record(update=update(2))
    journal.close()
    return tmp_path / "journal.db"


def check(path: Path, *, repaired: str) -> None:
    """Check that both copies together, and the database alone, have every record."""
    journal = Journal(path)
    assert repaired in journal.repaired
    assert bool(repaired) == bool(journal.repaired)
    _check_records(journal)
    (path.parent / "journal-copy" / "contents").unlink()
    again = Journal(path)
    assert again.repaired == ""
    _check_records(again)


def _check_records(journal: Journal) -> None:
    assert journal.update() == update(2)
    assert journal.pointers() == POINTERS
    assert journal.floors() == {"image/timestamp": 7}
    journal.close()


def overwrite(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def change_a_row(path: Path) -> None:
    data = path.read_bytes()
    assert b'"image/timestamp":7' in data
    path.write_bytes(data.replace(b'"image/timestamp":7', b'"image/timestamp":2'))


def claim_a_version(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version=99")
    database.close()


@pytest.mark.parametrize(
    ("damage", "repaired"),
    [
        (overwrite, "damaged"),
        (cut_off, "damaged"),
        (change_a_row, "damaged (the checksum of 'floors' does not match)"),
        (claim_a_version, "damaged (its version is 99, unlike its copy's)"),
        (empty, "lost 3 commits"),
        (Path.unlink, "lost 3 commits"),
    ],
)
def test_a_damaged_database_is_made_anew_from_its_copy(
    path: Path, damage: Callable[[Path], None], repaired: str
) -> None:
    damage(path)
    check(path, repaired=repaired)


def test_a_damaged_database_is_kept_for_whoever_wants_to_look(path: Path) -> None:
    overwrite(path)
    damaged = path.read_bytes()
    Journal(path).close()
    assert path.with_name("journal.db.damaged").read_bytes() == damaged


@pytest.mark.parametrize("damage", [overwrite, empty, cut_off, Path.unlink])
def test_a_damaged_copy_is_made_anew_from_the_database(
    path: Path, damage: Callable[[Path], None]
) -> None:
    damage(path.parent / "journal-copy" / "contents")
    Journal(path).close()
    path.unlink()
    check(path, repaired="lost 3 commits")


def test_with_both_damaged_nothing_is_believed(path: Path) -> None:
    overwrite(path)
    overwrite(path.parent / "journal-copy" / "contents")
    with pytest.raises(JournalError) as refused:
        Journal(path)
    assert "enrol the box again" in refused.value.advice


def test_an_old_database_put_back_lowers_no_floor(path: Path) -> None:
    """Damage to the log leaves an old database, and so does an attempt to downgrade."""
    old = path.read_bytes()
    journal = Journal(path)
    journal.raise_floors({"image/timestamp": 9})
    journal.record(update=update(3))
    journal.close()
    path.write_bytes(old)
    journal = Journal(path)
    assert journal.repaired == "the database had lost 2 commits, restored from the copy"
    assert journal.floors() == {"image/timestamp": 9}
    assert journal.update() == update(3)
    journal.close()


def test_an_old_copy_put_back_lowers_no_floor(path: Path) -> None:
    copy = path.parent / "journal-copy" / "contents"
    old = copy.read_bytes()
    journal = Journal(path)
    journal.raise_floors({"image/timestamp": 9})
    journal.close()
    copy.write_bytes(old)
    Journal(path).close()
    path.unlink()
    journal = Journal(path)
    assert journal.floors() == {"image/timestamp": 9}
    journal.close()


def test_a_commit_that_only_the_copy_got_counts_and_is_no_damage(path: Path) -> None:
    duplicate = Duplicate(path.parent / "journal-copy")
    contents = duplicate.read()
    assert contents is not None
    more = {"floors": b'{"image/timestamp":8}', "commits": b"4"}
    duplicate.write(Contents(documents=contents.documents | more))
    journal = Journal(path)
    assert journal.repaired == ""
    assert journal.floors() == {"image/timestamp": 8}
    journal.close()


def test_the_copy_is_written_before_the_database(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between the two writes leaves the commit in the copy, never only in the database."""
    duplicate = Duplicate(path.parent / "journal-copy")

    def crash(*_: object) -> None:
        raise sqlite3.OperationalError("the process ended here")

    journal = Journal(path)
    with monkeypatch.context() as patch:
        patch.setattr("agent.journal.database.Database.write", crash)
        with pytest.raises(JournalError, match="ended here"):
            journal.raise_floors({"image/timestamp": 9})
    journal.close()
    copy = duplicate.read()
    assert copy is not None
    assert msgspec.json.decode(copy.documents["floors"]) == {"image/timestamp": 9}
    # The database alone has the older floor; with the copy the higher one counts.
    overwrite(path)
    restored = Journal(path)
    assert restored.floors() == {"image/timestamp": 9}
    restored.close()


def test_a_commit_whose_copy_fails_does_not_reach_the_database(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    journal = Journal(path)
    with monkeypatch.context() as patch:
        patch.setattr("agent.journal.duplicate.write_file", full)
        with pytest.raises(JournalError, match="No space left"):
            journal.raise_floors({"image/timestamp": 9})
    journal.close()
    (path.parent / "journal-copy" / "contents").unlink()
    alone = Journal(path)
    assert alone.floors() == {"image/timestamp": 7}
    alone.close()


def test_every_commit_of_the_database_is_flushed_to_the_disk(path: Path) -> None:
    """SQLite syncs its write-ahead log on commit only with ``synchronous=FULL`` (2)."""
    database = Database(path)
    assert database.connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert database.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


def test_a_new_folder_of_the_copy_is_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a sync of its parent, a power cut can lose the folder and the copy in it."""
    synced: list[Path] = []
    monkeypatch.setattr("agent.journal.duplicate.sync_directory", synced.append)
    Journal(tmp_path / "journal.db").close()
    assert synced == [tmp_path]


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CORRUPT_VTAB])
def test_damage_is_recognised_by_primary_and_extended_codes(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object) -> None:
        error = sqlite3.DatabaseError("malformed")
        error.sqlite_errorcode = code
        raise error

    monkeypatch.setattr(Database, "_open", fail)
    with pytest.raises(DamagedError):
        Database(path)


def test_a_passing_error_is_not_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error

    monkeypatch.setattr(Database, "_open", fail)
    with pytest.raises(sqlite3.OperationalError):
        Database(path)


def test_a_failed_transaction_is_rolled_back_and_the_next_one_works(path: Path) -> None:
    database = Database(path)
    before = database.contents
    unstorable = msgspec.structs.replace(before, documents={**before.documents, "x": object()})
    with pytest.raises(TypeError):
        database.write(before, unstorable)
    storable = msgspec.structs.replace(before, documents={**before.documents, "x": b"1"})
    database.write(before, storable)
    database.close()
    again = Database(path)
    assert again.contents.documents["x"] == b"1"
    again.close()


def test_who_only_looks_changes_nothing(path: Path) -> None:
    overwrite(path)
    before = path.read_bytes()
    with pytest.raises(JournalError):
        Journal(path, repair=False)
    assert path.read_bytes() == before
    assert sorted(each.name for each in path.parent.iterdir()) == ["journal-copy", "journal.db"]


# The schema of agents that kept no copy.
SCHEMA_2 = """
CREATE TABLE documents (name TEXT PRIMARY KEY, body BLOB NOT NULL, sum BLOB NOT NULL) STRICT;
CREATE TABLE receipts (generation INTEGER PRIMARY KEY, body BLOB NOT NULL, sum BLOB NOT NULL)
    STRICT;
PRAGMA user_version=2;
"""


def write_version_2(path: Path) -> None:
    """Write a journal as agents without a copy did."""
    database = sqlite3.connect(path)
    database.executescript(SCHEMA_2)
    documents = {
        "update": update(2),
        "candidate": None,
        "current": HELD,
        "last_good": None,
        "floors": {"image/timestamp": 7},
    }
    for name, document in documents.items():
        body = msgspec.json.encode(document)
        row = (name, body, hashlib.sha256(f"{name}\n".encode() + body).digest())
        database.execute("INSERT INTO documents VALUES (?, ?, ?)", row)
    database.commit()
    database.execute("PRAGMA journal_mode=WAL")
    database.close()


def test_a_journal_of_version_2_is_taken_on_and_gets_its_copy(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    write_version_2(path)
    check(path, repaired="")
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA user_version").fetchone() == (VERSION,)
    database.close()


def test_a_migration_that_a_crash_cut_short_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.db"
    write_version_2(path)

    def crash(*_: object) -> None:
        raise sqlite3.OperationalError("as if the power had gone")

    with monkeypatch.context() as patch:
        patch.setattr("agent.journal.database.Database.write", crash)
        journal = Journal(path)
        assert journal.update() == update(2)
        journal.close()
    check(path, repaired="")


def test_a_journal_whose_migration_found_no_room_is_written_with_the_next_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.db"
    write_version_2(path)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("agent.journal.duplicate.write_file", full)
        journal = Journal(path)
    journal.record(update=update(2))
    journal.close()
    check(path, repaired="")


@pytest.mark.parametrize("version", [1, 99])
def test_another_version_is_refused_with_advice_and_left_as_it_was(
    tmp_path: Path, version: int
) -> None:
    path = tmp_path / "journal.db"
    write_version_2(path)
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version={version}")
    database.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match=f"version {version}") as refused:
        Journal(path)
    assert ("newer agent" if version == 99 else "Enrol") in refused.value.advice
    assert path.read_bytes() == before


def test_a_copy_of_a_newer_agent_is_refused_when_only_it_is_left(path: Path) -> None:
    duplicate = Duplicate(path.parent / "journal-copy")
    contents = duplicate.read()
    assert contents is not None
    duplicate.write(msgspec.structs.replace(contents, version=99))
    path.unlink()
    with pytest.raises(JournalError, match="99"):
        Journal(path)
