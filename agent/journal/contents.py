"""Contents of a journal as encoded documents, and migration from older versions.

Both copies, the database and the file beside it, hold these. The document ``commits`` is the number
of commits made so far: of two undamaged copies the one with the higher number is the newer.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec import Struct

from agent.errors import JournalError

VERSION: Final = 3
COMMITS: Final = "commits"


class Contents(Struct, frozen=True, kw_only=True):
    """Documents by name and receipts by generation; ``version`` is the format's."""

    version: int = VERSION
    documents: dict[str, bytes] = {}
    receipts: dict[int, bytes] = {}

    @property
    def commits(self) -> int:
        """Number of commits made so far."""
        return msgspec.json.decode(self.documents.get(COMMITS, b"0"), type=int)


def _count_commits(contents: Contents) -> Contents:
    return msgspec.structs.replace(contents, documents=contents.documents | {COMMITS: b"0"})


# Steps from each version to the next. A change in a document's meaning adds a line here and one to
# VERSION. Version 1, without checksums, was never released.
MIGRATIONS: Final[Mapping[int, Callable[[Contents], Contents]]] = MappingProxyType(
    {2: _count_commits}
)


def is_known(contents: Contents) -> bool:
    """Check that this agent can read the contents' version."""
    return contents.version == VERSION or contents.version in MIGRATIONS


def migrated(contents: Contents) -> Contents:
    """Convert contents to this agent's version; JournalError if theirs is unknown."""
    if contents.version > VERSION:
        raise JournalError(
            f"the journal has version {contents.version}; this agent knows up to {VERSION}",
            advice="Install the newer agent again: the journal was not changed.",
        )
    while contents.version < VERSION:
        step = MIGRATIONS.get(contents.version)
        if step is None:
            raise JournalError(
                f"the journal has version {contents.version}, which is too old for this agent",
                advice="Enrol the box again into an empty --data-dir.",
            )
        contents = msgspec.structs.replace(step(contents), version=contents.version + 1)
    return contents
