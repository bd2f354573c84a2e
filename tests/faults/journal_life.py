"""``python -m tests.faults.journal_life ROOT``: journal commits on a disk that fails once per run.

Runs with failing_calls.c preloaded. Every run is a fork with a separate folder below ROOT. It
commits COMMITS updates, retries each until it succeeds, marks the committed ones in the log, and
exits as if it had been killed.
"""

import ctypes
import errno
import os
import sys
from pathlib import Path
from typing import Final

from agent.errors import JournalError
from agent.journal import Assignment, HeldRelease, Journal, Pointers, Update

COMMITS: Final = 8
# Operation, error.
FAULTS: Final = (("w", errno.EIO), ("w", errno.ENOSPC), ("s", errno.EIO), ("t", errno.EIO))


def update(number: int) -> Update:
    """Build a detail that contains its number several times and fills a page."""
    release = f"acme/a@{number}"
    assignment = Assignment(generation=number, release=release, manifest_sha256="0" * 64)
    return Update(assignment=assignment, state="idle", detail=f"{number} " * 900)


def pointers(number: int) -> Pointers:
    release = f"acme/a@{number}"
    return Pointers(current=HeldRelease(reference=release, manifest=b"", manifest_sha256=""))


def live(folder: Path, operation: str, after: int, error: int) -> bool:
    """Run the commits; return True if the fault occurred."""
    calls = ctypes.CDLL(None)
    folder.mkdir()
    journal = Journal(folder / "journal.db")
    # Checkpoint every few commits.
    journal._database.connection.execute("PRAGMA wal_autocheckpoint=12")
    journal.record(update=update(0), pointers=pointers(0))
    # Logging starts here; all earlier writes count as durable.
    start = folder / "start"
    start.mkdir()
    for path in folder.glob("journal.db*"):
        (start / path.name).write_bytes(path.read_bytes())
    calls.calls_log(str(folder / "log").encode())
    calls.calls_arm(ord(operation), after, error)
    refused = 0
    for number in range(1, COMMITS + 1):
        while True:
            try:
                journal.record(update=update(number), pointers=pointers(number))
                break
            except JournalError:
                refused += 1
                assert journal.update() == update(number - 1)
        assert journal.update() == update(number)
        calls.calls_mark(ctypes.c_uint64(number))
    assert refused <= 1
    return bool(calls.calls_hit())


def main(root: Path) -> None:
    for operation, error in FAULTS:
        after = 0
        hit = True
        while hit:
            child = os.fork()
            if child == 0:
                hit = live(root / f"{operation}-{error}-{after}", operation, after, error)
                os._exit(0 if hit else 77)
            hit = {0: True, 77: False}[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
            after += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
