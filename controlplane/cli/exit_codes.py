"""Exit codes of `flotilla`: the one table, which docs/command-line.md repeats."""

from enum import IntEnum
from typing import Final

from artifact.errors import ArtifactError, InvalidManifestError
from controlplane.errors import (
    ConflictError,
    ControlPlaneError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    UnauthenticatedError,
)
from runtimes.errors import RuntimeFault, UnsafeFileError, UnsupportedModelError


class ExitCode(IntEnum):
    """Outcome of a command, for scripts. 130 is 128 + SIGINT, as shells report it."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    NOT_FOUND = 4
    DENIED = 5
    UNREACHABLE = 6
    TIMED_OUT = 7
    INTERRUPTED = 130


# Meaning of each code, as in the table of docs/command-line.md.
MEANINGS: Final = {
    ExitCode.DONE: "done; with `--wait` and `rollout watch`: it ended as requested",
    ExitCode.FAILED: "it was tried and failed, or ended otherwise than requested",
    ExitCode.USAGE: "an option, an argument or a file is wrong, or `--yes` is missing",
    ExitCode.REFUSED: "the present state does not allow it",
    ExitCode.NOT_FOUND: "no object has this name or id",
    ExitCode.DENIED: "the token is unknown, or its role does not allow it",
    ExitCode.UNREACHABLE: "no connection to the server, or it has no capacity",
    ExitCode.TIMED_OUT: "no answer in time; the change may have been made",
    ExitCode.INTERRUPTED: "Ctrl-C; what the server has started continues",
}

# By the name of a gRPC status; names, so that grpc is not imported for `--help`.
BY_STATUS: Final = {
    "INVALID_ARGUMENT": ExitCode.USAGE,
    "OUT_OF_RANGE": ExitCode.USAGE,
    "FAILED_PRECONDITION": ExitCode.REFUSED,
    "ALREADY_EXISTS": ExitCode.REFUSED,
    "ABORTED": ExitCode.REFUSED,
    "UNIMPLEMENTED": ExitCode.REFUSED,
    "NOT_FOUND": ExitCode.NOT_FOUND,
    "UNAUTHENTICATED": ExitCode.DENIED,
    "PERMISSION_DENIED": ExitCode.DENIED,
    "UNAVAILABLE": ExitCode.UNREACHABLE,
    "RESOURCE_EXHAUSTED": ExitCode.UNREACHABLE,
    "CANCELLED": ExitCode.UNREACHABLE,
    "DEADLINE_EXCEEDED": ExitCode.TIMED_OUT,
}

# Errors raised within the command itself; the first class that matches decides.
_BY_ERROR: Final[tuple[tuple[type[Exception], ExitCode], ...]] = (
    (InvalidInputError, ExitCode.USAGE),
    (InvalidManifestError, ExitCode.USAGE),
    (NotFoundError, ExitCode.NOT_FOUND),
    (ConflictError, ExitCode.REFUSED),
    (UnauthenticatedError, ExitCode.DENIED),
    (ForbiddenError, ExitCode.DENIED),
    (OverloadedError, ExitCode.UNREACHABLE),
    (ControlPlaneError, ExitCode.FAILED),
    (ArtifactError, ExitCode.REFUSED),
    (UnsafeFileError, ExitCode.REFUSED),
    (UnsupportedModelError, ExitCode.REFUSED),
    (RuntimeFault, ExitCode.FAILED),
)


def exit_code_of_status(name: str) -> ExitCode:
    """Return the exit code of a gRPC status such as NOT_FOUND."""
    return BY_STATUS.get(name, ExitCode.FAILED)


def exit_code_of_error(error: Exception) -> ExitCode:
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), ExitCode.FAILED)
