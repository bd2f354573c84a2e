"""Connection to a control plane: context file, TLS channel, and messages for failed calls."""

import contextlib
import os
import socket
import ssl
import stat
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import grpc
import msgspec

from artifact.tls_faults import TlsFault, read_tls_fault
from controlplane.cli.app import GlobalOptions, RefusedError
from controlplane.cli.exit_codes import ExitCode, exit_code_of_status
from controlplane.cli.mutations import MutationInterceptor
from controlplane.cli.output import note

TIMEOUT_SECONDS = 30.0
PROBE_SECONDS = 3.0
PAGE_SIZE = 500
# Bounds a list without --limit.
MAX_LISTED = 1_000_000
MAX_CONTEXT_BYTES = 1 << 18
MAX_MESSAGE_BYTES = 64 << 20
# Trailing metadata beside the status: the next step (controlplane.api).
ADVICE_KEY = "flotilla-advice"


class Context(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Address, CA and token of a server; `flotilla serve` writes the first one."""

    server: Annotated[str, msgspec.Meta(pattern=r"^.{1,255}:[0-9]{1,5}\Z")]
    token: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    ca_pem: Annotated[str, msgspec.Meta(min_length=1, max_length=65536)]


def load_context(path: Path) -> Context:
    """Load a context file; raise RefusedError if it is missing or malformed."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(MAX_CONTEXT_BYTES)
        if mode & 0o077:
            note(f"{path} holds a token and is open to others (mode {mode:o}): chmod 600 {path}")
        return msgspec.json.decode(data, type=Context)
    except FileNotFoundError as error:
        raise RefusedError(
            f"there is no context file {path}",
            advice="Name one with --context or FLOTILLA_CONTEXT; "
            "`flotilla serve --data-dir DIR` writes DIR/admin.json.",
            exit_code=ExitCode.USAGE,
        ) from error
    except OSError as error:
        raise RefusedError(
            f"cannot read the context file {path}: {error.strerror}",
            advice="Check who owns it; it holds a secret token and is for its owner only.",
            exit_code=ExitCode.USAGE,
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RefusedError(
            f"{path} is not a context file: {error}",
            advice='It is JSON: {"server": "HOST:PORT", "token": "...", "ca_pem": "..."}.',
            exit_code=ExitCode.USAGE,
        ) from error


@contextlib.contextmanager
def connect(settings: GlobalOptions) -> Iterator[grpc.Channel]:
    """Open a channel with the bearer token; failed calls inside become RefusedError."""
    context = load_context(settings.context_path)
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(context.ca_pem.encode()),
        grpc.access_token_call_credentials(context.token),
    )
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.primary_user_agent", "flotilla-cli"),
        # Reconnect quickly to a server that restarts.
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]
    with grpc.secure_channel(context.server, credentials, options) as channel:
        try:
            yield grpc.intercept_channel(channel, MutationInterceptor())
        except grpc.RpcError as error:
            raise refusal(error, context) from error


def request_id() -> str:
    """Return a new id for one mutation, which a retry with the same id does not repeat."""
    return uuid.uuid4().hex


def every_page(call: Callable[..., Any], request: Any, field: str, limit: int) -> Iterator[Any]:
    """Yield the items in ``field`` of a paged list, up to ``limit`` of them."""
    request.page_size = min(limit, PAGE_SIZE)
    while True:
        response = call(request, timeout=TIMEOUT_SECONDS)
        items = list(getattr(response, field))[:limit]
        yield from items
        limit -= len(items)
        if not response.next_page_token or limit <= 0:
            return
        request.page_token = response.next_page_token


def refusal(error: grpc.RpcError, context: Context) -> RefusedError:
    """Return the message and the advice for a failed call."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and not _advice(error):
        message, advice = _unreachable(details, context)
        return RefusedError(message, advice=advice, exit_code=ExitCode.UNREACHABLE)
    return RefusedError(
        details or f"the server answered {code.name}",
        advice=_advice(error) or _ADVICE_BY_CODE.get(code, ""),
        exit_code=exit_code_of_status(code.name),
    )


_OTHER_AUTHORITY = (
    "Use the context file of that server. If its CA was replaced (`flotilla ca`), take `ca_pem` "
    "from a context file that was refreshed in time, or from admin.json in the server's data "
    "directory; if not, something stands between: do not go on."
)


# Message and advice by the fault of the server's certificate.
_CERTIFICATE_FAULTS: Final = {
    TlsFault.NOT_YET_VALID: (
        "the certificate of {server} is not valid yet by this machine's clock, which says {now}",
        "Set the clock (timedatectl, NTP); if it is right, the server's clock is ahead.",
    ),
    TlsFault.EXPIRED: (
        "the certificate of {server} has expired by this machine's clock, which says {now}",
        "Set the clock (timedatectl, NTP); if it is right, the server has to renew: see its log.",
    ),
    TlsFault.WRONG_NAME: (
        "the certificate of {server} is not for that name",
        "Use a name that it is for, or start the server with it: `flotilla serve --hostname NAME`.",
    ),
    TlsFault.UNKNOWN_AUTHORITY: (
        "{server} showed a certificate that the context's CA did not sign",
        _OTHER_AUTHORITY,
    ),
}


def _unreachable(details: str, context: Context) -> tuple[str, str]:
    server = context.server
    fault = read_tls_fault(details)
    if fault in _CERTIFICATE_FAULTS:
        message, advice = _CERTIFICATE_FAULTS[fault]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return message.format(server=server, now=now), advice
    for cause in ("Connection refused", "DNS resolution failed", "Timeout occurred"):
        if cause.lower() in details.lower():
            return (
                f"cannot reach {server}: {cause.lower()}",
                "Check that `flotilla serve` runs there, and the address in the context file.",
            )
    if _is_device_port(context):
        return (
            f"{server} hangs up on whoever shows no device certificate: that is the device port",
            "Put the public port, from endpoints.json beside the server, into the context file.",
        )
    return f"cannot reach {server}: {details[:300]}", "Check the address, and try again."


def _is_device_port(context: Context) -> bool:
    """Return True if the server closes TLS connections that have no client certificate."""
    host, _, port = context.server.rpartition(":")
    try:
        tls = ssl.create_default_context(cadata=context.ca_pem)
        # The failed call has checked the address already.
        tls.check_hostname = False
        tls.set_alpn_protocols(["h2"])
        address = (host.strip("[]"), int(port))
        with (
            socket.create_connection(address, PROBE_SECONDS) as plain,
            tls.wrap_socket(plain) as secured,
        ):
            # A server of the public port sends its HTTP/2 settings first.
            return secured.recv(1) == b""
    except (OSError, ValueError):
        return False


def _advice(error: grpc.RpcError) -> str:
    trailing: Any = error.trailing_metadata() or ()
    for key, value in trailing:
        if key == ADVICE_KEY:
            return str(value)
    return ""


_ADVICE_BY_CODE = {
    grpc.StatusCode.UNAUTHENTICATED: "Get a token with `flotilla access token create`, "
    "and put it into the context file.",
    grpc.StatusCode.PERMISSION_DENIED: "Ask an admin for a token with a role that may do this.",
    grpc.StatusCode.DEADLINE_EXCEEDED: "The server is slow or stuck; see its log. A change may "
    "have been made nevertheless: check with `list` or `show` before you repeat the command.",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "The server is busy; try again in a moment.",
    grpc.StatusCode.UNIMPLEMENTED: "The server is older than this command; update it.",
    grpc.StatusCode.INTERNAL: "The server's log has the details.",
    grpc.StatusCode.UNKNOWN: "The server's log has the details.",
}
