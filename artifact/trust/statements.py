"""What director and publisher say, once it is verified, and whether they say alike (after Uptane).

The director says which release this device should run; the publisher signs, offline, which releases
there are. A device installs only what both say: a thief of either alone gains nothing that the
other would not allow. Nothing here checks a signature, nor needs what does.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from artifact.errors import DisagreementError, UntrustedError
from artifact.manifest import Release, decode_release

# Of the director's, after the first: as many as python-tuf follows in one go.
MAX_ROOTS: Final = 256
NOT_THE_TRUSTED_ONE: Final = (
    "Nothing is taken from it. If it stays so, the server, or what lies between, is not the one "
    "that was trusted first: compare with the publisher."
)


@dataclass(frozen=True, slots=True)
class DirectedRelease:
    """The release that the director wants, as the publisher signed it."""

    reference: str
    length: int
    sha256: str
    counter: int


@dataclass(frozen=True, slots=True)
class Directive:
    """What a device should run; no release: nothing."""

    device_id: str
    generation: int
    release: DirectedRelease | None


@dataclass(frozen=True, slots=True)
class DirectorMetadata:
    """A device's three files, and every root after the first one, which it has pinned."""

    timestamp: bytes
    snapshot: bytes
    targets: bytes
    roots: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifiedRelease:
    """What the publisher signs about a release that it lists now.

    ``versions`` are those of the metadata that said so, by role. No ``hardware_classes``: any
    device may run it.
    """

    reference: str
    length: int
    sha256: str
    counter: int
    min_release: int
    versions: Mapping[str, int]
    hardware_classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Authorities:
    """What a server says about its authorities, each PEM; empty for what there is not.

    ``new_with_old`` is the current one endorsed by the previous one. In ``old_with_new`` the
    current one vouches for the previous one, towards those who begin with the current one.
    """

    current: bytes
    previous: bytes = b""
    new_with_old: bytes = b""
    old_with_new: bytes = b""

    @property
    def bundle(self) -> bytes:
        """All of them in one PEM, the current one first."""
        return self.current + self.previous


def check_directive(directive: Directive, generation: int, reference: str) -> None:
    """The signed directive is for the assignment that came with it; an empty reference: nothing.

    Raises DisagreementError.
    """
    directed = directive.release.reference if directive.release else ""
    if (directive.generation, directed) != (generation, reference):
        raise DisagreementError(
            f"the assignment {generation} names {reference or 'nothing'!a}, its signed metadata "
            f"{directive.generation} and {directed or 'nothing'!a}",
            advice=NOT_THE_TRUSTED_ONE,
        )


def check_agreement(directive: Directive, verified: VerifiedRelease, hardware_class: str) -> None:
    """The director wants exactly what the publisher signed, and it may run on this hardware.

    Raises DisagreementError.
    """
    wanted = directive.release
    signed = (verified.reference, verified.length, verified.sha256, verified.counter)
    said = wanted and (wanted.reference, wanted.length, wanted.sha256, wanted.counter)
    if said != signed:
        raise DisagreementError(
            f"the publisher signed {signed} (reference, length, SHA-256, counter), the director "
            f"wants {said}",
            advice=NOT_THE_TRUSTED_ONE,
        )
    if verified.hardware_classes and hardware_class not in verified.hardware_classes:
        raise DisagreementError(
            f"{verified.reference} is for the hardware classes "
            f"{', '.join(verified.hardware_classes)}; this is {hardware_class}",
            advice="Roll it out to devices of those classes: `flotilla device list` shows them.",
        )


def check_manifest(verified: VerifiedRelease, manifest: bytes) -> Release:
    """The release in a fetched manifest, when that is exactly what the publisher signed.

    Raises UntrustedError or InvalidManifestError.
    """
    digest = hashlib.sha256(manifest).hexdigest()
    if (len(manifest), digest) != (verified.length, verified.sha256):
        raise UntrustedError(
            f"the manifest of {verified.reference} has {len(manifest)} bytes and the digest "
            f"{digest}; signed are {verified.length} and {verified.sha256}",
            advice=NOT_THE_TRUSTED_ONE,
        )
    release = decode_release(manifest)
    if (release.reference, release.counter) != (verified.reference, verified.counter):
        raise UntrustedError(
            f"the manifest signed as {verified.reference} with the counter {verified.counter} "
            f"calls itself {release.reference} with {release.counter}",
            advice="The publisher signed a contradiction: publish a new version.",
        )
    return release
