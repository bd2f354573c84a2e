"""The catalog from errors to gRPC statuses and their public texts."""

import logging
from dataclasses import dataclass
from typing import Final

import grpc

from artifact.errors import (
    ArtifactError,
    ChunkMismatchError,
    InvalidManifestError,
    UntrustedError,
)
from controlplane.disk import disk_full, is_no_space
from controlplane.errors import (
    ConflictError,
    ControlPlaneError,
    DatabaseUnavailableError,
    ForbiddenError,
    InvalidInputError,
    NameTakenError,
    NotFoundError,
    OverloadedError,
    StaleError,
    StoppingError,
    StorageFullError,
    UnauthenticatedError,
)

log = logging.getLogger(__name__)

# Trailing metadata of the status.
ADVICE_KEY: Final = "flotilla-advice"
RETRY_AFTER_KEY: Final = "flotilla-retry-after-ms"
MAX_TEXT_CHARACTERS: Final = 1500

# The first class that an error is an instance of decides.
CATALOG: Final = (
    (InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT),
    (InvalidManifestError, grpc.StatusCode.INVALID_ARGUMENT),
    (ChunkMismatchError, grpc.StatusCode.INVALID_ARGUMENT),
    (UntrustedError, grpc.StatusCode.FAILED_PRECONDITION),
    (ArtifactError, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (NameTakenError, grpc.StatusCode.ALREADY_EXISTS),
    (StaleError, grpc.StatusCode.ABORTED),
    (ConflictError, grpc.StatusCode.FAILED_PRECONDITION),
    (UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    (ForbiddenError, grpc.StatusCode.PERMISSION_DENIED),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (StoppingError, grpc.StatusCode.UNAVAILABLE),
    (StorageFullError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DatabaseUnavailableError, grpc.StatusCode.UNAVAILABLE),
)


@dataclass(frozen=True, slots=True)
class Status:
    """Status of a failed RPC."""

    code: grpc.StatusCode
    message: str
    trailing: tuple[tuple[str, str], ...] = ()


def status_of(error: Exception, method: str) -> Status:
    """Return the status of an error; a foreign error is logged and gets a general text."""
    if is_no_space(error):
        # A key or context file, outside the database and the chunk store.
        error = disk_full(str(error))
    code = next((code for kind, code in CATALOG if isinstance(error, kind)), None)
    if code is not None and isinstance(error, ControlPlaneError | ArtifactError):
        trailing = [(ADVICE_KEY, plain(error.advice))] if error.advice else []
        if isinstance(error, OverloadedError):
            milliseconds = max(1, round(error.retry_after_seconds * 1000))
            trailing.append((RETRY_AFTER_KEY, str(milliseconds)))
        return Status(code, plain(str(error)), tuple(trailing))
    # asyncio.timeout around the servicer; a foreign TimeoutError within it looks the same.
    if isinstance(error, TimeoutError):
        return Status(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            f"{method} took longer than this server allows",
            ((ADVICE_KEY, "Try again; if it stays so, look at the server's log."),),
        )
    log.error("call_failed method=%s", method, exc_info=error)
    return Status(
        grpc.StatusCode.INTERNAL,
        f"{method} failed within the server",
        ((ADVICE_KEY, "The server's log has the details."),),
    )


def plain(text: str) -> str:
    """Return printable ASCII of bounded length, safe for metadata and for a log line."""
    return ascii(text)[1:-1].replace("\\'", "'")[:MAX_TEXT_CHARACTERS]
