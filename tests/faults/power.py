"""A disk under a power cut: the possible remains of a folder at any point of the agent's work.

The recorder watches every call by which the agent changes its disk (tests.faults.disk) and every
commit of the journal. It tracks fsyncs: contents by a file's fsync, names by their directory's. At
every such point it derives the states that a power cut could leave, each the pair of one choice of
names and one of contents:

    names     as they are now | as of each directory's last fsync
    contents  as they are now | as of each file's last fsync, cut there or followed by zeros

SQLite orders the writes of the journal itself; its files are taken as of the last commit, and also
with the last commit truncated in the log.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from agent.journal.database import Database
from tests.faults.disk import tapped

JOURNAL: Final = "journal.db"
Tree = tuple[tuple[str, bytes], ...]


@dataclass
class _File:
    """An inode, kept open so that its number is not reused."""

    descriptor: int
    durable: bytes = b""

    def now(self) -> bytes:
        return os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)


@dataclass
class Cut:
    """A power cut: its point in the work and the files it left."""

    point: str
    tree: Tree

    def leave(self, root: Path) -> None:
        """Write the remaining files below ``root``, a new folder."""
        for name, data in self.tree:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.write_bytes(data)


@dataclass
class Recorder:
    """Recorder of the folders ``names`` below ``root`` and of the journal beside them, if any."""

    root: Path
    names: tuple[str, ...]
    cuts: dict[Tree, Cut] = field(default_factory=dict)
    _files: dict[int, _File] = field(default_factory=dict)
    # Durable entries of each folder: name to inode.
    _entries: dict[str, dict[str, int]] = field(default_factory=dict)
    _journal: dict[str, bytes] = field(default_factory=dict)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Mark the present contents as durable."""
        self._look()
        for file in self._files.values():
            file.durable = file.now()
        self._entries = {name: self._listing(name) for name in self.names}
        self._journal = self._journal_now()
        real = Database._transaction

        @contextmanager
        def transaction(database: Database) -> Iterator[None]:
            self.point("before a commit")
            with real(database):
                yield
            self._committed()

        try:
            with (
                pytest.MonkeyPatch.context() as patch,
                tapped(lambda call: self.point(f"before {call}"), self._done),
            ):
                patch.setattr(Database, "_transaction", transaction)
                yield
                self.point("at the end")
        finally:
            for file in self._files.values():
                os.close(file.descriptor)

    def point(self, what: str) -> None:
        """Record the states that a power cut at this point could leave."""
        self._look()
        now = {name: self._listing(name) for name in self.names}
        for names in (now, self._entries):
            for contents in (_as_now, _cut_off, _zeroed):
                self._keep(what, names, contents, self._journal)

    def _committed(self) -> None:
        before, self._journal = self._journal, self._journal_now()
        log = f"{JOURNAL}-wal"
        old, new = before.get(log, b""), self._journal.get(log, b"")
        # After a checkpoint SQLite overwrites the log from its beginning.
        changed = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
        start = changed if changed is not None else min(len(old), len(new))
        for torn in (start + 1, (start + len(new)) // 2, len(new) - 1):
            journal = self._journal | {log: new[:torn] + old[torn:]}
            self._keep("within a commit", self._entries, _as_now, journal)
        self.point("after a commit")

    def _done(self, call: str, args: tuple[Any, ...]) -> None:
        if call == "fsync":
            number = os.fstat(args[0]).st_ino
            if number in self._files:
                self._files[number].durable = self._files[number].now()
            for name in self.names:
                if (self.root / name).stat().st_ino == number:
                    self._entries[name] = self._listing(name)
        self.point(f"after {call}")

    def _look(self) -> None:
        for name in self.names:
            for entry in os.scandir(self.root / name):
                if entry.is_file() and entry.inode() not in self._files:
                    self._files[entry.inode()] = _File(os.open(entry.path, os.O_RDONLY))

    def _listing(self, name: str) -> dict[str, int]:
        return {each.name: each.inode() for each in os.scandir(self.root / name) if each.is_file()}

    def _journal_now(self) -> dict[str, bytes]:
        found = (self.root / f"{JOURNAL}{suffix}" for suffix in ("", "-wal"))
        return {path.name: path.read_bytes() for path in found if path.exists()}

    def _keep(
        self,
        what: str,
        names: dict[str, dict[str, int]],
        contents: Callable[[_File], bytes],
        journal: dict[str, bytes],
    ) -> None:
        left = dict(journal)
        for folder, entries in names.items():
            left[f"{folder}/"] = b""
            for name, inode in entries.items():
                if inode in self._files:
                    left[f"{folder}/{name}"] = contents(self._files[inode])
        tree = tuple(sorted(left.items()))
        self.cuts.setdefault(tree, Cut(what, tree))


def _as_now(file: _File) -> bytes:
    return file.now()


def _cut_off(file: _File) -> bytes:
    return file.durable


def _zeroed(file: _File) -> bytes:
    """Return content of a file system that writes a file's size before its blocks."""
    return file.durable[: len(file.now())].ljust(len(file.now()), b"\0")
