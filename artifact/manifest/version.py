"""Order of release versions by Semantic Versioning 2.0.0, section 11."""

import re
from dataclasses import dataclass
from functools import total_ordering
from typing import Final

_IDENTIFIERS: Final = r"[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*"
_VERSION: Final = re.compile(
    rf"(?P<core>[0-9]{{1,9}}(?:\.[0-9]{{1,9}}){{0,2}})(?:-(?P<pre>{_IDENTIFIERS}))?(?:\+{_IDENTIFIERS})?"
)


@total_ordering
@dataclass(frozen=True, slots=True)
class SemanticVersion:
    """A parsed version: 1 to 3 numbers, where missing ones are 0, and pre-release identifiers."""

    core: tuple[int, int, int]
    prerelease: tuple[str, ...] = ()

    def __lt__(self, other: "SemanticVersion") -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[object, ...]:
        # A release is above its pre-releases; numbers are below texts, and fewer identifiers below
        # more (rules 3 and 4). Tuples compare element by element, so the kind comes first.
        identifiers = tuple(
            (0, int(one), "") if one.isdecimal() else (1, 0, one) for one in self.prerelease
        )
        return (self.core, not self.prerelease, identifiers)


def parse_version(text: str) -> SemanticVersion | None:
    """Parse ``1``, ``1.2``, ``1.2.3``, ``1.2.3-rc.1`` or ``1.2.3+build``; None for other forms."""
    match = _VERSION.fullmatch(text)
    if match is None:
        return None
    numbers = [int(part) for part in match["core"].split(".")]
    major, minor, patch = (*numbers, 0, 0)[:3]
    return SemanticVersion(
        (major, minor, patch), tuple((match["pre"] or "").split(".")) if match["pre"] else ()
    )
