"""The journal's second copy: one small file, replaced whole before each commit.

It is never older than the database, so taking it for a damaged one loses no commit and lowers no
floor. At most it has the one commit that the database did not get to, which then counts as made:
nothing had been done yet that depended on it.
"""

import hashlib
import logging
from pathlib import Path
from typing import Final

import msgspec

from agent.journal.contents import Contents
from agent.storage.atomic_file import sync_directory, write_file

log = logging.getLogger(__name__)

# Pointers with their manifests, and receipts that wait: thousands of times what there ever is.
MAX_BYTES: Final = 1 << 28
_SUM_BYTES: Final = 32


class Duplicate:
    """In a folder of its own, as its directory is synchronised on every commit."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "contents"

    def read(self) -> Contents | None:
        """What was written last; None when there is nothing whole."""
        try:
            with self._path.open("rb") as source:
                data = source.read(MAX_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("journal_copy_unreadable error=%s", ascii(str(error)))
            return None
        body = data[_SUM_BYTES:]
        if hashlib.sha256(body).digest() != data[:_SUM_BYTES]:
            log.warning("journal_copy_damaged path=%s", self._path)
            return None
        return msgspec.msgpack.decode(body, type=Contents)

    def write(self, contents: Contents) -> None:
        """Durably; OSError."""
        if not self._folder.exists():
            self._folder.mkdir(mode=0o700)
            sync_directory(self._folder.parent)
        body = msgspec.msgpack.encode(contents)
        write_file(self._path, hashlib.sha256(body).digest() + body)
