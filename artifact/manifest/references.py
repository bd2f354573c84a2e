"""References publisher/name@version, and their TUF target paths."""

import re

import msgspec

from artifact.errors import InvalidManifestError
from artifact.manifest.fields import QualifiedName

REFERENCE = re.compile(r"^(?P<name>[^@]{3,104})@(?P<version>[0-9A-Za-z][0-9A-Za-z.+-]{0,63})\Z")


def target_path(reference: str) -> str:
    """Return the TUF target path of a release reference: publisher/name/version.json."""
    name, version = split_reference(reference)
    return f"{name}/{version}.json"


def split_reference(reference: str) -> tuple[str, str]:
    """Split a reference into name and version; raise InvalidManifestError if malformed."""
    match = REFERENCE.match(reference)
    if match is None:
        raise InvalidManifestError(
            f"{reference!r} is not a release reference",
            advice="Write it as publisher/name@version; `flotilla release list` shows them.",
        )
    name = msgspec.convert(match["name"], QualifiedName) if _valid_name(match["name"]) else ""
    if not name:
        raise InvalidManifestError(
            f"{match['name']!r} is not a publisher/name",
            advice="Use lower-case letters, digits, dots and dashes on both sides of the slash.",
        )
    return name, match["version"]


def _valid_name(name: str) -> bool:
    try:
        msgspec.convert(name, QualifiedName)
    except msgspec.ValidationError:
        return False
    return True
