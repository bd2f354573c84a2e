"""Parsing of the image repository's metadata: bounded, typed, with our errors.

Roles have TUF's names: root, targets, snapshot, timestamp, and one role per publisher. Metadata is
always kept as the bytes that were signed, because encoding it again could change its digest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from artifact.errors import ExpiredMetadataError, UntrustedError

Roles = Mapping[str, bytes]
"""Bytes of the newest metadata by role name."""

Kind = TypeVar("Kind", Root, Targets, Snapshot, Timestamp)

HardwareClasses = Annotated[
    tuple[Annotated[str, Meta(pattern=r"^[0-9a-f]{12}\Z")], ...], Meta(max_length=64)
]

MAX_METADATA_BYTES: Final = 2 << 20
# A field of our own in timestamps: when they were signed, in seconds since 1970.
SIGNED_AT: Final = "signed_at"

_MADE_BY: Final = "Make it with `flotilla keys` or `flotilla publish`."


@dataclass(frozen=True, slots=True)
class ListedRelease:
    """A publisher's signed entry of one release.

    ``counter`` orders the releases of one name; devices refuse those below ``min_release``. Empty
    ``hardware_classes`` allow any device.
    """

    path: str
    length: int
    sha256: str
    counter: int
    min_release: int
    hardware_classes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Publisher and name, such as acme/assistant."""
        return self.path.rpartition("/")[0]


class _Custom(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    counter: Annotated[int, Meta(ge=1, le=1 << 53)]
    min_release: Annotated[int, Meta(ge=0, le=1 << 53)]
    hardware_classes: HardwareClasses = ()


def parse(kind: type[Kind], data: bytes, role: str) -> Metadata[Kind]:
    """Parse metadata without checking signatures; UntrustedError if it is not of this kind."""
    metadata: Metadata[Kind] = _read(data, role)
    if metadata.signed.type != kind.type:
        raise UntrustedError(
            f"the {role} metadata is of type {metadata.signed.type}, not {kind.type}",
            advice=_MADE_BY,
        )
    return metadata


def _read(data: bytes, role: str) -> Metadata[Any]:
    if len(data) > MAX_METADATA_BYTES:
        raise UntrustedError(
            f"the {role} metadata has {len(data)} bytes; the maximum is {MAX_METADATA_BYTES}",
            advice="Delist old releases.",
        )
    try:
        return Metadata.from_bytes(data)
    except (RepositoryError, RecursionError) as error:
        raise UntrustedError(
            f"the {role} metadata cannot be read: {error}", advice=_MADE_BY
        ) from error


def refuse_expired(signed: Signed, role: str, now: datetime) -> None:
    """Raise ExpiredMetadataError if the metadata has expired at ``now``."""
    if signed.is_expired(now):
        raise ExpiredMetadataError(
            f"the {role} metadata expired at {signed.expires.isoformat()}",
            advice=f"Sign a new version of {role}, and check this machine's clock.",
        )


def file_name(role: str, data: bytes) -> str:
    """Return the name by which agents fetch it: timestamp.json, 3.root.json, 7.acme.json."""
    if role == Timestamp.type:
        return "timestamp.json"
    return f"{version_of(role, data)}.{role}.json"


def version_of(role: str, data: bytes) -> int:
    """Return the version in the metadata."""
    return int(_read(data, role).signed.version)


def listed_releases(targets: Targets) -> dict[str, ListedRelease]:
    """Return the releases that a publisher's metadata lists, by target path."""
    return {path: listed_release(target) for path, target in targets.targets.items()}


def listed_release(target: TargetFile) -> ListedRelease:
    """Return the release entry of a target; UntrustedError if its custom fields are invalid."""
    try:
        custom = msgspec.convert(target.custom, _Custom)
        return ListedRelease(
            target.path,
            target.length,
            target.hashes["sha256"],
            custom.counter,
            custom.min_release,
            custom.hardware_classes,
        )
    except (msgspec.ValidationError, KeyError) as error:
        raise UntrustedError(
            f"the target {target.path!r} is not described as a release: {error}",
            advice="Publish it again with `flotilla publish`.",
        ) from error
