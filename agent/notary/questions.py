"""What the daemon asks of its notary, and what that answers; tagged msgpack, one frame each.

The notary reaches nothing but its data directory. What else a question needs comes with it, and
what was missing is asked for by the answer ``Missing``: the same question then comes again with it.
"""

from datetime import datetime

from msgspec import Struct

from agent.identity.credentials import Credentials
from artifact.trust.statements import Authorities, Directive, DirectorMetadata, VerifiedRelease


class Question(Struct, frozen=True, kw_only=True, tag=True):
    """About the box whose data directory the notary was started on."""


class WhoAmI(Question, frozen=True, kw_only=True):
    """Which identity is on the disk."""


class Sign(Question, frozen=True, kw_only=True):
    """The device key's signature of this."""

    data: bytes


class Adopt(Question, frozen=True, kw_only=True):
    """Whether this certificate is ours, and of an authority that those in ``ca_pem`` lead to.

    Then both replace what is on the disk, before the answer.
    """

    certificate_pem: bytes
    ca_pem: bytes
    offered: Authorities | None


class Follow(Question, frozen=True, kw_only=True):
    """Who the box's authorities are, as those in ``ca_pem`` endorse these.

    They replace those on the disk, unless the certificate is of none of them any more: that must be
    renewed first.
    """

    certificate_pem: bytes
    ca_pem: bytes
    offered: Authorities


class Request(Question, frozen=True, kw_only=True):
    """What asks for a certificate under this name, signed."""

    name: str


class Direct(Question, frozen=True, kw_only=True):
    """What the director tells this device."""

    device_id: str
    metadata: DirectorMetadata
    now: datetime
    floors: dict[str, int]


class Resolve(Question, frozen=True, kw_only=True):
    """What the publisher signs about this release. ``metadata`` is what was fetched for it."""

    reference: str
    metadata: dict[str, bytes | None]
    now: datetime
    floors: dict[str, int]


class Answer(Struct, frozen=True, kw_only=True, tag=True):
    """``floors`` have risen to these numbers, whatever else the answer is."""

    floors: dict[str, int] = {}


class Identified(Answer, frozen=True, kw_only=True):
    """Whom the box is now."""

    credentials: Credentials


class Signed(Answer, frozen=True, kw_only=True):
    """A signature, or a signed request."""

    data: bytes


class Directed(Answer, frozen=True, kw_only=True):
    """The director's word, verified."""

    directive: Directive


class Resolved(Answer, frozen=True, kw_only=True):
    """The publisher's word, verified."""

    release: VerifiedRelease


class Missing(Answer, frozen=True, kw_only=True):
    """Ask again with this metadata."""

    name: str


class Refused(Answer, frozen=True, kw_only=True):
    """An error by its name in ``artifact.errors`` or ``agent.errors``."""

    kind: str
    message: str
    advice: str
