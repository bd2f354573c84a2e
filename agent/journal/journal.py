"""What the agent must not forget, on disk twice before anything depends on it.

One commit moves the update's state, the three pointers and the receipt together, so activating a
release is one atomic step. It goes to the duplicate first and then to the database; whichever of
the two is damaged when the agent starts is made anew from the other.
"""

import logging
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.errors import JournalError
from agent.journal.contents import COMMITS, Contents, is_known, migrated
from agent.journal.database import DamagedError, Database, set_aside
from agent.journal.documents import HeldRelease, Pointers, Receipt, Update
from agent.journal.duplicate import Duplicate

log = logging.getLogger(__name__)

_POINTERS: Final = ("candidate", "current", "last_good")


class Journal:
    """For one agent process at a time. Safe to call from any thread."""

    def __init__(self, path: Path, *, mend: bool = True) -> None:
        """JournalError. Without ``mend`` nothing is written: for those who only look."""
        self._lock = threading.Lock()
        self._path = path
        self._duplicate = Duplicate(path.with_name("journal-copy"))
        # What had to be mended, in words; empty when nothing was.
        self.mended = ""
        self._contents = self._opened(mend=mend)
        # Read here, before any other thread may write: what serves asks for them all the time.
        self._pointers = self._read_pointers()

    def _opened(self, *, mend: bool) -> Contents:
        copy = self._duplicate.read()
        missing = not self._path.exists()
        try:
            self._database = self._open_database(copy, mend=mend)
        except (DamagedError, OSError, sqlite3.Error) as error:
            raise _unusable(self._path, str(error)) from error
        self._stored = self._database.contents
        contents = migrated(self._stored)
        # Beside a whole database a copy that a newer agent left is as good as none.
        if copy is not None and (is_known(copy) or not contents.documents):
            copy = migrated(copy)
            lost = copy.commits - contents.commits
            # One more is a commit that a crash cut short.
            if (lost > 1 or (lost == 1 and missing)) and not self.mended:
                self.mended = f"it had lost {lost} commits, and has them from its copy"
            contents = copy if lost > 0 else contents
        if mend and not contents == copy == self._stored:
            self._settle(contents)
        if self.mended:
            log.error("journal_mended path=%s how=%s", self._path, ascii(self.mended))
        return contents

    def _open_database(self, copy: Contents | None, *, mend: bool) -> Database:
        """What is damaged is set aside for a new one when the copy can fill it."""
        try:
            return self._whole_database(copy)
        except DamagedError as error:
            if copy is None or not mend:
                raise
            # JournalError for a newer agent's.
            migrated(copy)
            set_aside(self._path)
            self.mended = f"it was damaged ({error}), and is made anew from its copy"
            return Database(self._path)

    def _whole_database(self, copy: Contents | None) -> Database:
        database = Database(self._path)
        if copy is None or not is_known(copy) or is_known(database.contents):
            return database
        # The copy is written first: were this a newer agent's, the copy would be too.
        database.close()
        raise DamagedError(f"it claims the version {database.contents.version}")

    def _settle(self, contents: Contents) -> None:
        """Make both copies say this; on a full disk the next commit will."""
        try:
            self._write(contents)
        except (OSError, sqlite3.Error) as error:
            log.warning("journal_not_settled error=%s", ascii(str(error)))

    def _write(self, contents: Contents) -> None:
        self._duplicate.write(contents)
        self._database.write(self._stored, contents)
        self._stored = contents

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            self._database.close()

    def update(self) -> Update | None:
        """The assignment in hand or the last one; None before the first."""
        found: Update | None = self._document("update", Update)
        return found

    def pointers(self) -> Pointers:
        """What serves, what it would fall back to, and what is being tried."""
        return self._pointers

    def _read_pointers(self) -> Pointers:
        try:
            return Pointers(**{name: self._document(name, HeldRelease) for name in _POINTERS})
        except JournalError:
            self._database.close()
            raise

    def floors(self) -> dict[str, int]:
        """The highest metadata version ever verified, by role."""
        return self._document("floors", dict[str, int]) or {}

    def receipts(self) -> list[Receipt]:
        """Those that the server has not acknowledged, oldest first."""
        stored = sorted(self._contents.receipts.items())
        return [self._decoded(generation, body, Receipt) for generation, body in stored]

    def record(
        self,
        *,
        update: Update | None = None,
        pointers: Pointers | None = None,
        receipt: Receipt | None = None,
    ) -> None:
        """Store all of these in one transaction, durably."""
        documents: dict[str, object] = {} if update is None else {"update": update}
        if pointers is not None:
            documents |= {name: getattr(pointers, name) for name in _POINTERS}
        with self._lock:
            receipts = self._contents.receipts
            if receipt is not None:
                receipts = receipts | {receipt.generation: msgspec.json.encode(receipt)}
            self._commit(documents, receipts)
            self._pointers = pointers or self._pointers

    def raise_floors(self, versions: Mapping[str, int]) -> None:
        """Never again accept metadata older than these versions."""
        with self._lock:
            floors = self.floors()
            risen = {role: max(version, floors.get(role, 0)) for role, version in versions.items()}
            self._commit({"floors": floors | risen}, self._contents.receipts)

    def acknowledge(self, generations: Iterable[int]) -> None:
        """Forget receipts that the server has stored."""
        with self._lock:
            gone = set(generations)
            kept = {key: body for key, body in self._contents.receipts.items() if key not in gone}
            self._commit({}, kept)

    def _commit(self, documents: Mapping[str, object], receipts: dict[int, bytes]) -> None:
        """In the order that the duplicate's docstring promises.

        JournalError changes nothing here, but the next start may find it made: try it again.
        """
        changed = {**documents, COMMITS: self._contents.commits + 1}
        encoded = {name: msgspec.json.encode(document) for name, document in changed.items()}
        contents = Contents(documents=self._contents.documents | encoded, receipts=receipts)
        try:
            self._write(contents)
        except (OSError, sqlite3.Error) as error:
            raise _unusable(self._path, str(error)) from error
        self._contents = contents

    def _document(self, name: str, kind: Any) -> Any:
        body = self._contents.documents.get(name)
        return None if body is None else self._decoded(name, body, kind | None)

    def _decoded(self, key: str | int, body: bytes, kind: Any) -> Any:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise _unusable(self._path, f"{key!a} is of another agent: {error}") from error


def _unusable(path: Path, why: str) -> JournalError:
    return JournalError(
        f"{path} cannot be used: {why}",
        advice="Check the disk and its space. If this and journal-copy beside it are damaged, "
        "the box has to be enrolled again.",
    )
