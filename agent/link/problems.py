"""Reasons why the control plane cannot be used, as text for the owner of the box."""

from datetime import datetime
from typing import Final

import grpc
import grpc.aio

from agent.errors import IdentityError
from agent.identity.credentials import Credentials
from agent.link.translate import ADVICE_KEY, refusal_text, trailing
from artifact.tls_faults import TlsFault, read_tls_fault

_PROBLEMS: Final = {
    TlsFault.NOT_YET_VALID: (
        "the server's certificate is not valid yet by this box's clock, which says {now}. Set the "
        "clock (timedatectl, NTP); if it is right, the server's clock is ahead."
    ),
    TlsFault.EXPIRED: (
        "the server's certificate has expired by this box's clock, which says {now}. Set the clock "
        "(timedatectl, NTP); if it is right, the server has not renewed its certificate: see its "
        "log."
    ),
    TlsFault.UNKNOWN_AUTHORITY: (
        "the server's certificate is not signed by an authority that this box trusts. If the "
        "fleet's authority was replaced while the box was off: make a token with `flotilla token "
        "create` and run `flotilla-agent enroll --recover --token TOKEN`. Otherwise the connection "
        "may be intercepted: do not trust it."
    ),
    TlsFault.WRONG_NAME: (
        "the server's certificate is not for the address that this box uses. Start the server with "
        "that name (`flotilla serve --hostname`), or run `flotilla-agent enroll --recover` with "
        "--server and another name of it."
    ),
}


def tls_problem(error: grpc.aio.AioRpcError, now: datetime) -> str:
    """Return the problem and advice if TLS found fault with the server; empty otherwise."""
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return ""
    fault = read_tls_fault(error.details() or "")
    text = _PROBLEMS.get(fault, "") if fault is not None else ""
    return text.format(now=now.isoformat(timespec="seconds"))


def explain(error: grpc.aio.AioRpcError, identity: Credentials, now: datetime) -> str:
    """Return the server's message and advice, or an own message where TLS failed.

    A TLS handshake that fails has no message from the server.
    """
    try:
        identity.check_valid(now)
    except IdentityError as invalid:
        return f"{invalid}. {invalid.advice}"
    if problem := tls_problem(error, now):
        return problem
    text = refusal_text(error)
    advice = trailing(error, ADVICE_KEY)
    closed = read_tls_fault(error.details() or "") is TlsFault.CLOSED
    if error.code() is grpc.StatusCode.UNAVAILABLE and closed and not advice:
        # gRPC closes the connection without an alert if it refuses the client's certificate.
        advice = (
            "If this persists, the server refuses this box's certificate, valid from "
            f"{identity.valid_from.isoformat()} to {identity.valid_until.isoformat()}: check the "
            "server's clock, and that the address is its device port."
        )
    return f"{text}. {advice}" if advice else text
