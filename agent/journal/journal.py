"""The journal: state that must survive a crash, stored before anything depends on it.

One commit changes the update's state, the three pointers and the receipt together, so that
activating a release is atomic. It is written to the duplicate first and then to the database. If
one of the two is damaged when the agent starts, it is restored from the other.
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
    """The journal of one agent process. Safe to call from any thread."""

    def __init__(self, path: Path, *, repair: bool = True) -> None:
        """Open or create the journal; JournalError. ``repair=False`` only reads."""
        self._lock = threading.Lock()
        self._path = path
        self._duplicate = Duplicate(path.with_name("journal-copy"))
        # The damage that was repaired on opening, as text; empty without any.
        self.repaired = ""
        self._contents = self._opened(repair=repair)
        # Decoded once: the gateway reads them on every request.
        self._pointers = self._read_pointers()

    def _opened(self, *, repair: bool) -> Contents:
        copy = self._duplicate.read()
        missing = not self._path.exists()
        try:
            self._database = self._open_database(copy, repair=repair)
        except (DamagedError, OSError, sqlite3.Error) as error:
            raise _unusable(self._path, str(error)) from error
        self._stored = self._database.contents
        contents = migrated(self._stored)
        # Ignore a copy of an unknown, newer version beside an intact database.
        if copy is not None and (is_known(copy) or not contents.documents):
            copy = migrated(copy)
            lost = copy.commits - contents.commits
            # A difference of one is a crash between the two writes, which is no damage.
            if (lost > 1 or (lost == 1 and missing)) and not self.repaired:
                self.repaired = f"the database had lost {lost} commits, restored from the copy"
            contents = copy if lost > 0 else contents
        if repair and not contents == copy == self._stored:
            self._settle(contents)
        if self.repaired:
            log.error("journal_repaired path=%s how=%s", self._path, ascii(self.repaired))
        return contents

    def _open_database(self, copy: Contents | None, *, repair: bool) -> Database:
        """Open the database; a damaged one is renamed and replaced if there is a copy."""
        try:
            return self._intact_database(copy)
        except DamagedError as error:
            if copy is None or not repair:
                raise
            # Raises JournalError, before anything is renamed, if a newer agent wrote the copy.
            migrated(copy)
            set_aside(self._path)
            self.repaired = f"the database was damaged ({error}) and is restored from the copy"
            return Database(self._path)

    def _intact_database(self, copy: Contents | None) -> Database:
        database = Database(self._path)
        if copy is None or not is_known(copy) or is_known(database.contents):
            return database
        # The copy is written first. A newer agent would have left a copy of its version too, so the
        # version number of the database is damaged.
        database.close()
        raise DamagedError(f"its version is {database.contents.version}, unlike its copy's")

    def _settle(self, contents: Contents) -> None:
        """Bring both copies up to date; on a full disk the next commit does."""
        try:
            self._write(contents)
        except (OSError, sqlite3.Error) as error:
            log.warning("journal_not_settled error=%s", ascii(str(error)))

    def _write(self, contents: Contents) -> None:
        # The copy first: it must never be older than the database (agent.journal.duplicate).
        self._duplicate.write(contents)
        self._database.write(self._stored, contents)
        self._stored = contents

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    def update(self) -> Update | None:
        """Return the current or the last update; None before the first assignment."""
        found: Update | None = self._document("update", Update)
        return found

    def pointers(self) -> Pointers:
        """Return the current, the last good and the candidate release."""
        return self._pointers

    def _read_pointers(self) -> Pointers:
        try:
            return Pointers(**{name: self._document(name, HeldRelease) for name in _POINTERS})
        except JournalError:
            self._database.close()
            raise

    def floors(self) -> dict[str, int]:
        """Return the highest metadata version verified so far, by role."""
        return self._document("floors", dict[str, int]) or {}

    def receipts(self) -> list[Receipt]:
        """Return the receipts that the server has not acknowledged, oldest first."""
        stored = sorted(self._contents.receipts.items())
        return [self._decoded(generation, body, Receipt) for generation, body in stored]

    def record(
        self,
        *,
        update: Update | None = None,
        pointers: Pointers | None = None,
        receipt: Receipt | None = None,
    ) -> None:
        """Store all of these in one durable commit; JournalError."""
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
        """Raise the version floors, below which metadata is refused; JournalError."""
        with self._lock:
            floors = self.floors()
            raised = {role: max(version, floors.get(role, 0)) for role, version in versions.items()}
            self._commit({"floors": floors | raised}, self._contents.receipts)

    def acknowledge(self, generations: Iterable[int]) -> None:
        """Delete receipts that the server has stored; JournalError."""
        with self._lock:
            stored = set(generations)
            kept = {key: body for key, body in self._contents.receipts.items() if key not in stored}
            self._commit({}, kept)

    def _commit(self, documents: Mapping[str, object], receipts: dict[int, bytes]) -> None:
        """Encode and store a commit; JournalError.

        After an error the state in memory is unchanged, but the duplicate may already have the
        commit, and the next start may count it as made. Callers repeat it.
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
            raise _unusable(self._path, f"{key!a} cannot be decoded: {error}") from error


def _unusable(path: Path, why: str) -> JournalError:
    return JournalError(
        f"{path} cannot be used: {why}",
        advice="Check the disk and its free space. If this file and journal-copy beside it are "
        "both damaged, enrol the box again.",
    )
