"""Verified statements of director and publisher, and the check that they agree (after Uptane).

The director names the release that this device should run; the publisher signs, offline, which
releases exist. A device installs only a release that both name: a thief of the keys of one gains
only what the other allows. This module does not verify signatures and does not import tuf.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from artifact.errors import DisagreementError, UntrustedError
from artifact.manifest import Release, decode_release

# Roots of the director after the first: the number that python-tuf follows in one refresh.
MAX_ROOTS: Final = 256
# Expiry of metadata and certificates is announced this long before.
EXPIRY_WARNING: Final = timedelta(days=60)
NOT_THE_TRUSTED_ONE: Final = (
    "The data is ignored. If this continues, the server, or a proxy in between, is not the one "
    "that was trusted first: compare with the publisher."
)


@dataclass(frozen=True, slots=True)
class DirectedRelease:
    """The release that the director assigns, with the publisher's values."""

    reference: str
    length: int
    sha256: str
    counter: int


@dataclass(frozen=True, slots=True)
class Directive:
    """The release that a device should run; None to serve no release."""

    device_id: str
    generation: int
    release: DirectedRelease | None


@dataclass(frozen=True, slots=True)
class DirectorMetadata:
    """A device's three files, and every root after the pinned first one."""

    timestamp: bytes
    snapshot: bytes
    targets: bytes
    roots: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifiedRelease:
    """A release that its publisher lists now.

    ``versions`` are those of the verified metadata, by role. Empty ``hardware_classes`` allow any
    device.
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
    """A server's authorities as PEM; empty where there is none.

    In ``new_with_old`` the previous authority endorses the current one. In ``old_with_new`` the
    current one vouches for the previous one, for clients that start from the current one.
    """

    current: bytes
    previous: bytes = b""
    new_with_old: bytes = b""
    old_with_new: bytes = b""

    @property
    def bundle(self) -> bytes:
        """Both authorities in one PEM, the current one first."""
        return self.current + self.previous


def check_directive(directive: Directive, generation: int, reference: str) -> None:
    """Check that a signed directive matches the assignment that came with it.

    An empty reference means to serve no release. Raises DisagreementError.
    """
    directed = directive.release.reference if directive.release else ""
    if (directive.generation, directed) != (generation, reference):
        raise DisagreementError(
            f"the assignment {generation} names {reference or 'nothing'!a}; its signed metadata "
            f"names {directive.generation} and {directed or 'nothing'!a}",
            advice=NOT_THE_TRUSTED_ONE,
        )


def check_agreement(directive: Directive, verified: VerifiedRelease, hardware_class: str) -> None:
    """Check that director and publisher agree on a release, and that this hardware may run it.

    Raises DisagreementError.
    """
    wanted = directive.release
    signed = (verified.reference, verified.length, verified.sha256, verified.counter)
    directed = wanted and (wanted.reference, wanted.length, wanted.sha256, wanted.counter)
    if directed != signed:
        raise DisagreementError(
            f"the publisher signed {signed} (reference, length, SHA-256, counter); the director "
            f"assigns {directed}",
            advice=NOT_THE_TRUSTED_ONE,
        )
    if verified.hardware_classes and hardware_class not in verified.hardware_classes:
        raise DisagreementError(
            f"{verified.reference} is for the hardware classes "
            f"{', '.join(verified.hardware_classes)}; this is {hardware_class}",
            advice="Roll it out to devices of those classes: `flotilla device list` shows them.",
        )


def check_manifest(verified: VerifiedRelease, manifest: bytes) -> Release:
    """Parse a fetched manifest after checking that it is the one that the publisher signed.

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
            f"contains {release.reference} with {release.counter}",
            advice="The publisher signed contradictory data: publish a new version.",
        )
    return release
