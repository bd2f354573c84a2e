"""A disk that fails below SQLite, at every write, fsync and truncation of the journal's files.

The calls are those of another process (tests.faults.journal_life). Its log is replayed on a disk
that has only what an fsync confirmed. There a failed fsync loses all that was written before it, as
on Linux: the pages count as clean from then on, and the next fsync succeeds.
"""

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.journal import Journal
from tests.faults.journal_life import COMMITS, pointers, update

HERE = Path(__file__).parent
RECORD = struct.Struct("<BBHQQ")


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory, memory: Path) -> list[Path]:
    """Folders, each of a life with one fault."""
    root = tmp_path_factory.mktemp("library")
    library = root / "failing_calls.so"
    compiler = shutil.which("cc") or "gcc"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "failing_calls.c", "-ldl"],
        check=True,
    )
    lives = memory / "lives"
    lives.mkdir()
    subprocess.run(
        [sys.executable, "-m", "tests.faults.journal_life", str(lives)],
        check=True,
        cwd=HERE.parents[1],
        env=os.environ | {"LD_PRELOAD": str(library)},
        timeout=120,
    )
    return sorted(lives.iterdir())


@dataclass
class DurableFile:
    """What an fsync confirmed, and what waits for one."""

    data: bytearray = field(default_factory=bytearray)
    waiting: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        for offset, data in self.waiting:
            if data is None:
                del self.data[offset:]
                self.data.extend(bytes(max(0, offset - len(self.data))))
            else:
                self.data.extend(bytes(max(0, offset - len(self.data))))
                self.data[offset : offset + len(data)] = data
        self.waiting.clear()


def confirmed(life: Path) -> Iterator[tuple[int, dict[str, bytes]]]:
    """After each commit that was taken: its number, and the journal's files on the disk."""
    files = {
        path.name: DurableFile(bytearray(path.read_bytes())) for path in (life / "start").iterdir()
    }
    log, position = (life / "log").read_bytes(), 0
    while position < len(log):
        operation, failed, name_bytes, offset, size = RECORD.unpack_from(log, position)
        position += RECORD.size
        name = log[position : position + name_bytes].decode()
        position += name_bytes
        file = files.setdefault(name, DurableFile())
        match chr(operation), bool(failed):
            case "w", _:
                if not failed:
                    file.waiting.append((offset, log[position : position + size]))
                position += size
            case "t", False:
                file.waiting.append((offset, None))
            case "s", False:
                file.sync()
            case "s", True:
                file.waiting.clear()
            case "m", _:
                yield (
                    offset,
                    {
                        name: bytes(each.data)
                        for name, each in files.items()
                        if name in {"journal.db", "journal.db-wal"}
                    },
                )


def test_every_call_was_failed_once(lives: list[Path]) -> None:
    """Else the test below would prove less than it says."""
    kinds = {
        kind: sum(life.name.startswith(kind) for life in lives) for kind in ("w-5", "w-28", "s-")
    }
    assert min(kinds.values()) > 2 * COMMITS
    assert kinds["w-5"] == kinds["w-28"]


def test_what_the_journal_took_is_on_the_disk_and_no_failed_fsync_counts(
    lives: list[Path], memory: Path
) -> None:
    for life in lives:
        taken = 0
        for taken, files in confirmed(life):
            folder = memory / life.name / str(taken)
            folder.mkdir(parents=True)
            for name, data in files.items():
                (folder / name).write_bytes(data)
            # SQLite alone: without the journal's copy.
            journal = Journal(folder / "journal.db", repair=False)
            assert journal.update() == update(taken), life.name
            assert journal.pointers() == pointers(taken), life.name
            journal.close()
        assert taken == COMMITS


def test_the_next_life_finds_the_last_commit(lives: list[Path]) -> None:
    for life in lives:
        journal = Journal(life / "journal.db")
        assert (journal.repaired, journal.update()) == ("", update(COMMITS)), life.name
        journal.close()
