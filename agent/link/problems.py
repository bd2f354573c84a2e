"""Reasons why the control plane cannot be used, as text for the owner of the box."""

from datetime import datetime

import grpc
import grpc.aio

from agent.errors import IdentityError
from agent.identity.credentials import Credentials
from agent.link.translate import ADVICE_KEY, refusal_text, trailing

_UNKNOWN_AUTHORITY = (
    "the server's certificate is not signed by an authority that this box trusts. If the fleet's "
    "authority was replaced while the box was off: make a token with `flotilla token create` and "
    "run `flotilla-agent enroll --recover --token TOKEN`. Otherwise something stands between: "
    "trust nothing that it says."
)


def explain(error: grpc.aio.AioRpcError, identity: Credentials, now: datetime) -> str:
    """Return the server's message and advice, or an own message where TLS failed.

    A TLS handshake that fails has no message from the server.
    """
    try:
        identity.check_not_expired(now)
    except IdentityError as expired:
        return f"{expired}. {expired.advice}"
    text = refusal_text(error)
    if error.code() is grpc.StatusCode.UNAVAILABLE and "CERTIFICATE_VERIFY_FAILED" in text:
        return _UNKNOWN_AUTHORITY
    advice = trailing(error, ADVICE_KEY)
    return f"{text}. {advice}" if advice else text
