"""Questions of the daemon to its notary, and the answers; tagged msgpack, one frame each.

The notary reads only the data directory. Everything else that a question needs is part of it. If
metadata is missing, the answer is ``Missing``, and the daemon repeats the question with it.
"""

from datetime import datetime

from msgspec import Struct

from agent.identity.credentials import Credentials
from artifact.trust.statements import Authorities, Directive, DirectorMetadata, VerifiedRelease


class Question(Struct, frozen=True, kw_only=True, tag=True):
    """A question about the box whose data directory the notary was started on."""


class WhoAmI(Question, frozen=True, kw_only=True):
    """Load the identity from the disk; answered by Identified."""


class Sign(Question, frozen=True, kw_only=True):
    """Sign ``data`` with the device key; answered by Signed."""

    data: bytes


class Adopt(Question, frozen=True, kw_only=True):
    """Check that a certificate is ours and that those in ``ca_pem`` endorse its authority.

    If so, both are stored on the disk before the answer, Identified.
    """

    certificate_pem: bytes
    ca_pem: bytes
    offered: Authorities | None


class Follow(Question, frozen=True, kw_only=True):
    """Adopt the offered authorities that those in ``ca_pem`` endorse; answered by Identified.

    They are stored on the disk unless none of them issued the certificate: then it must be renewed
    first.
    """

    certificate_pem: bytes
    ca_pem: bytes
    offered: Authorities


class Request(Question, frozen=True, kw_only=True):
    """Build a signed certificate request for this name; answered by Signed."""

    name: str


class Direct(Question, frozen=True, kw_only=True):
    """Verify the director's metadata for this device; answered by Directed or Missing."""

    device_id: str
    metadata: DirectorMetadata
    now: datetime
    floors: dict[str, int]


class Resolve(Question, frozen=True, kw_only=True):
    """Verify a release with the metadata fetched so far; answered by Resolved or Missing."""

    reference: str
    metadata: dict[str, bytes | None]
    now: datetime
    floors: dict[str, int]


class Answer(Struct, frozen=True, kw_only=True, tag=True):
    """An answer; ``floors`` are version floors to store, also if the answer is Refused."""

    floors: dict[str, int] = {}


class Identified(Answer, frozen=True, kw_only=True):
    """The box's identity."""

    credentials: Credentials


class Signed(Answer, frozen=True, kw_only=True):
    """A signature, or a signed certificate request."""

    data: bytes


class Directed(Answer, frozen=True, kw_only=True):
    """The director's verified directive."""

    directive: Directive


class Resolved(Answer, frozen=True, kw_only=True):
    """A release as publishers signed it, verified."""

    release: VerifiedRelease


class Missing(Answer, frozen=True, kw_only=True):
    """The name of metadata that the question lacks."""

    name: str


class Refused(Answer, frozen=True, kw_only=True):
    """An error; ``kind`` is its class in ``artifact.errors`` or ``agent.errors``."""

    kind: str
    message: str
    advice: str
