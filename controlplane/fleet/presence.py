"""Presence: whether a device is reachable now."""

from datetime import datetime, timedelta
from enum import StrEnum

# An agent that restarts reconnects within its backoff, so it still counts as reachable.
GRACE_SECONDS = 30.0


class Presence(StrEnum):
    """Reachability of a device."""

    CONNECTED = "connected"
    # Lost its stream moments ago.
    RECONNECTING = "reconnecting"
    OFFLINE = "offline"

    @property
    def reachable(self) -> bool:
        return self is not Presence.OFFLINE


def presence(
    *,
    connected: bool,
    last_seen_at: datetime | None,
    now: datetime,
    grace_seconds: float = GRACE_SECONDS,
) -> Presence:
    if connected:
        return Presence.CONNECTED
    if last_seen_at is not None and now - last_seen_at <= timedelta(seconds=grace_seconds):
        return Presence.RECONNECTING
    return Presence.OFFLINE
