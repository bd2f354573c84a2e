"""Health of the release that a device serves, as the device reports it with every status."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SlotHealth:
    """Health of one slot.

    ``ready``: the worker answers requests, after loading its model if need be. ``worker_restarts``
    counts since the release went live; ``requests`` and ``errors`` count since the agent started,
    for this release and slot. Errors are failures through no fault of the caller.
    """

    slot: str
    ready: bool
    worker_restarts: int = 0
    requests: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True)
class ReleaseHealth:
    """Health of a release (publisher/name@version); without one there are no slots."""

    release: str = ""
    slots: tuple[SlotHealth, ...] = ()
