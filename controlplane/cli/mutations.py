"""Calls that change something: a longer deadline, and repetition with the same request id."""

import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import grpc

from controlplane.cli.app import RefusedError
from controlplane.cli.exit_codes import ExitCode

# A change to a large fleet takes longer than a query, and a client that gives up does not undo it.
MUTATION_SECONDS: Final = 300.0
# Waits before repeating a call whose connection broke, in seconds.
RETRY_SECONDS: Final = (1.0, 2.0, 4.0)


class _Details(NamedTuple):
    """The fields of grpc.ClientCallDetails, which grpc offers no way to copy."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class MutationInterceptor(grpc.UnaryUnaryClientInterceptor):
    """Recognises mutations by their ``request_id``, with which the server applies them once."""

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        if not getattr(request, "request_id", ""):
            return continuation(details, request)
        patient = _Details(
            details.method,
            MUTATION_SECONDS,
            details.metadata,
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )
        try:
            return self._repeat(lambda: continuation(patient, request))
        except KeyboardInterrupt as error:
            raise RefusedError(
                "interrupted before the server answered; it may have made the change",
                advice="Check with `list` or `show` before you repeat the command.",
                exit_code=ExitCode.INTERRUPTED,
            ) from error

    def _repeat(self, send: Callable[[], Any]) -> Any:
        call = send()
        for seconds in RETRY_SECONDS:
            if not _was_interrupted(call):
                break
            self._sleep(seconds)
            call = send()
        return call


def _was_interrupted(call: Any) -> bool:
    """Check that the server may have received the call, and that its answer was lost."""
    if call.code() is not grpc.StatusCode.UNAVAILABLE or call.trailing_metadata():
        return False
    # Without any connection the server did not receive it: report that at once.
    return "failed to connect" not in (call.details() or "").lower()
