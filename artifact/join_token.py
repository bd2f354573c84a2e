"""Join token: the secret that admits a new box, and the digests by which it trusts the server.

The text is ``flt1.`` and the base64url of a small JSON object. The digests are SHA-256: of the
certificate authority's DER, and of the first root metadata of the image repository and of the
director repository (docs/adr/0004).
"""

import base64
import binascii
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from artifact.errors import InvalidJoinTokenError
from artifact.manifest import Digest

PREFIX = "flt1."
MAX_TOKEN_CHARACTERS = 1024


class JoinToken(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Fields of a join token; only ``secret`` is secret."""

    secret: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{16,128}\Z")]
    ca: Digest
    root: Digest
    director: Digest


def encode_join_token(token: JoinToken) -> str:
    """Return the text that an operator copies to the box."""
    return PREFIX + base64.urlsafe_b64encode(msgspec.json.encode(token)).decode().rstrip("=")


def decode_join_token(text: str) -> JoinToken:
    """Parse a join token; InvalidJoinTokenError, whose message never contains the token."""
    text = text.strip()
    if not text.startswith(PREFIX) or len(text) > MAX_TOKEN_CHARACTERS:
        raise InvalidJoinTokenError(
            f"this is not a join token: it does not start with {PREFIX!r}",
            advice="Copy the whole `secret` that `flotilla token create` printed.",
        )
    body = text.removeprefix(PREFIX)
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(data, type=JoinToken)
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError):
        raise InvalidJoinTokenError(
            f"this join token of {len(text)} characters is damaged",
            advice="Copy the whole `secret` that `flotilla token create` printed.",
        ) from None
