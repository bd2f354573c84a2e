"""Every error that the control plane raises; each says what was wrong and what to do next."""


class ControlPlaneError(Exception):
    """Something that was asked of the control plane cannot be done.

    ``advice`` is the next step for whoever asked, in one sentence.
    """

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


class InvalidInputError(ControlPlaneError):
    """What was given does not have the form that it must have."""


class InvalidSelectorError(InvalidInputError):
    """A label selector does not parse, or is too long."""


class InvalidStrategyError(InvalidInputError):
    """A rollout strategy does not follow its schema or contradicts itself."""


class NotFoundError(ControlPlaneError):
    """Nothing has the id or name that was asked for."""


class ConflictError(ControlPlaneError):
    """The thing is there but not in a state that allows what was asked."""


class NameTakenError(ConflictError):
    """Something else has this name already."""


class DeviceBusyError(ConflictError):
    """A device is already part of another unfinished rollout."""


class StaleError(ConflictError):
    """What was decided on has changed meanwhile; load it again and decide anew."""


class UnauthenticatedError(ControlPlaneError):
    """Who asks is not known: no token or certificate, or one that is not valid here."""


class ForbiddenError(ControlPlaneError):
    """Who asks is known and may not do this."""


class JoinRefusedError(ForbiddenError):
    """A join token is known but admits nobody now: expired, revoked, or all used."""


class OverloadedError(ControlPlaneError):
    """Too much is asked at once; ``retry_after_seconds`` says when to ask again."""

    def __init__(self, message: str, *, retry_after_seconds: float, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.retry_after_seconds = retry_after_seconds


class StoppingError(ControlPlaneError):
    """This server is going down; another, or the same one again, will answer soon."""


class DataDirectoryError(ControlPlaneError):
    """The data directory cannot be used: it is locked, damaged, or not writable."""


class AddressError(ControlPlaneError):
    """An address to listen on is malformed or taken."""
