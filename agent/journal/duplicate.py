"""The journal's second copy: one small file, replaced before each commit of the database.

It is therefore never older than the database, and restoring a damaged database from it loses no
commit and lowers no floor. It may have one commit that the database lacks, after a crash between
the two writes; that commit then counts as made, since no action had depended on it yet.
"""

import hashlib
import logging
from pathlib import Path
from typing import Final

import msgspec

from agent.journal.contents import Contents
from agent.storage.atomic_file import sync_directory, write_file

log = logging.getLogger(__name__)

# A bound on reading: thousands of times the size of pointers, manifests and waiting receipts.
MAX_BYTES: Final = 1 << 28
_SUM_BYTES: Final = 32


class Duplicate:
    """The copy, in a separate folder, because each commit synchronises its directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "contents"

    def read(self) -> Contents | None:
        """Read what was written last; None if it is absent, unreadable or damaged."""
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
        """Replace the copy durably; OSError."""
        if not self._folder.exists():
            self._folder.mkdir(mode=0o700)
            sync_directory(self._folder.parent)
        body = msgspec.msgpack.encode(contents)
        write_file(self._path, hashlib.sha256(body).digest() + body)
