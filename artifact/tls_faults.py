"""Causes of a failed TLS handshake, read from gRPC's message.

gRPC reports all of them as UNAVAILABLE and offers no code, only BoringSSL's text. The causes have
opposite remedies (set the clock, or trust nothing), so that they must not share a message.
"""

from enum import StrEnum
from typing import Final


class TlsFault(StrEnum):
    """Reason why the handshake failed."""

    # By this machine's clock.
    NOT_YET_VALID = "not_yet_valid"
    EXPIRED = "expired"
    UNKNOWN_AUTHORITY = "unknown_authority"
    WRONG_NAME = "wrong_name"
    # The peer closed the connection: gRPC servers do so if they refuse the client's certificate.
    CLOSED = "closed"


# Searched in this order, in lower case: the reasons of CERTIFICATE_VERIFY_FAILED come before it.
_TEXTS: Final = (
    ("certificate is not yet valid", TlsFault.NOT_YET_VALID),
    ("certificate has expired", TlsFault.EXPIRED),
    ("hostname verification check failed", TlsFault.WRONG_NAME),
    # Two authorities of one name: the signature does not match the trusted one's key.
    ("certificate signature failure", TlsFault.UNKNOWN_AUTHORITY),
    ("certificate_verify_failed", TlsFault.UNKNOWN_AUTHORITY),
    ("certificate verify failed", TlsFault.UNKNOWN_AUTHORITY),
    ("socket closed", TlsFault.CLOSED),
)


def read_tls_fault(details: str) -> TlsFault | None:
    """Return the cause in the details of an UNAVAILABLE error; None if it is not one of TLS."""
    lowered = details.lower()
    return next((fault for text, fault in _TEXTS if text in lowered), None)
