"""Why the control plane cannot be used, in words for the owner of the box."""

from datetime import datetime

import grpc
import grpc.aio

from agent.errors import IdentityError
from agent.identity.credentials import Credentials
from agent.link.translate import ADVICE_KEY, refusal_text, trailing

_STRANGER = (
    "the server's certificate is not signed by an authority that this box trusts. If the fleet's "
    "authority was replaced while the box was off: make a token with `flotilla token create` and "
    "run `flotilla-agent enroll --recover --token TOKEN`. Otherwise something stands between: "
    "trust nothing that it says."
)


def explain(error: grpc.aio.AioRpcError, identity: Credentials, now: datetime) -> str:
    """In the server's words; it has none for a certificate that TLS did not let through."""
    try:
        identity.check_not_expired(now)
    except IdentityError as expired:
        return f"{expired}. {expired.advice}"
    text = refusal_text(error)
    if error.code() is grpc.StatusCode.UNAVAILABLE and "CERTIFICATE_VERIFY_FAILED" in text:
        return _STRANGER
    advice = trailing(error, ADVICE_KEY)
    return f"{text}. {advice}" if advice else text
