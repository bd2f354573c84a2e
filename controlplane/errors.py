"""Exceptions of the control plane; each message names the fault, ``advice`` the next step."""


class ControlPlaneError(Exception):
    """A request cannot be carried out.

    ``advice`` is the next step for the caller, in one sentence.
    """

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


class InvalidInputError(ControlPlaneError):
    """An argument does not have the required form."""


class InvalidSelectorError(InvalidInputError):
    """A label selector does not parse, or is too long."""


class InvalidStrategyError(InvalidInputError):
    """A rollout strategy does not follow its schema or contradicts itself."""


class NotFoundError(ControlPlaneError):
    """No object has the requested id or name."""


class ConflictError(ControlPlaneError):
    """The object is in a state that does not allow the request."""


class NameTakenError(ConflictError):
    """Another object has this name already."""


class DeviceBusyError(ConflictError):
    """A device is already part of another unfinished rollout."""


class StaleError(ConflictError):
    """The data changed between reading and writing; load it again and retry."""


class UnauthenticatedError(ControlPlaneError):
    """The caller is unknown: no token or certificate, or one that is not valid here."""


class ForbiddenError(ControlPlaneError):
    """The caller is known but not allowed to do this."""


class JoinRefusedError(ForbiddenError):
    """A join token is known but not usable: expired, revoked, or all uses spent."""


class OverloadedError(ControlPlaneError):
    """Too many requests at once; retry after ``retry_after_seconds``."""

    def __init__(self, message: str, *, retry_after_seconds: float, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.retry_after_seconds = retry_after_seconds


class StoppingError(ControlPlaneError):
    """This server is stopping; another one, or this one after its restart, will answer."""


class NotStartedError(ControlPlaneError):
    """The server is starting, or too slow to answer a probe."""


class StorageError(ControlPlaneError):
    """The storage below the server does not accept the request now."""


class StorageFullError(StorageError):
    """The disk is full: reads work, writes do not."""


class DatabaseUnavailableError(StorageError):
    """The database does not answer."""


class DataDirectoryError(ControlPlaneError):
    """The data directory cannot be used: it is locked, damaged, or not writable."""


class AddressError(ControlPlaneError):
    """An address to listen on is taken or not one of this machine."""
