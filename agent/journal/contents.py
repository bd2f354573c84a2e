"""All that a journal says, as encoded documents, and how an older agent's becomes today's.

Both of its copies, the database and the file beside it, hold these. ``documents`` has one of the
name ``commits``: how many commits led here. Of two whole copies the one with more is the newer.
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
    """``version`` is of the agent that wrote them; receipts are by their generation."""

    version: int = VERSION
    documents: dict[str, bytes] = {}
    receipts: dict[int, bytes] = {}

    @property
    def commits(self) -> int:
        """How many commits led here; 0 for none."""
        return msgspec.json.decode(self.documents.get(COMMITS, b"0"), type=int)


def _count_commits(contents: Contents) -> Contents:
    return msgspec.structs.replace(contents, documents=contents.documents | {COMMITS: b"0"})


# From each version to the next. A change of what a document means gets a line here, and VERSION
# rises by one. Version 1, which had no sums, was never released.
MIGRATIONS: Final[Mapping[int, Callable[[Contents], Contents]]] = MappingProxyType(
    {2: _count_commits}
)


def is_known(contents: Contents) -> bool:
    """Whether this agent can read what says to be of this version."""
    return contents.version == VERSION or contents.version in MIGRATIONS


def migrated(contents: Contents) -> Contents:
    """The same as this agent says it; JournalError for a version that it does not know."""
    if contents.version > VERSION:
        raise JournalError(
            f"the journal has version {contents.version}; this agent knows up to {VERSION}",
            advice="Install the newer agent again: the journal was left as it was.",
        )
    while contents.version < VERSION:
        step = MIGRATIONS.get(contents.version)
        if step is None:
            raise JournalError(
                f"the journal has version {contents.version}, which is too old for this agent",
                advice="Enrol the box again, into an empty data directory.",
            )
        contents = msgspec.structs.replace(step(contents), version=contents.version + 1)
    return contents
