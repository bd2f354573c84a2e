"""Signals wake tasks of this process that wait for a change.

A signal has no content: the woken task reads the store again. So signals may merge, and a missed
signal only delays the task until its next poll.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final

# A fact that a rollout decides on has changed.
FLEET_CHANGED: Final = "fleet"


_DEVICE: Final = "device/"


def device_key(device_id: str) -> str:
    return f"{_DEVICE}{device_id}"


def rollout_key(rollout_id: str) -> str:
    return f"rollout/{rollout_id}"


class Signals:
    """Subscriptions by key. Use it from one event loop only."""

    def __init__(self) -> None:
        self._subscribers: dict[str, set[asyncio.Event]] = {}

    def notify(self, key: str) -> None:
        for event in self._subscribers.get(key, ()):
            event.set()

    def notify_devices(self) -> None:
        """Wake the stream of every device."""
        for key in list(self._subscribers):
            if key.startswith(_DEVICE):
                self.notify(key)

    @contextlib.contextmanager
    def subscribe(self, key: str) -> Iterator[asyncio.Event]:
        """Return an event that every notification sets.

        Clear it before reading the store: a change after the read then sets it again.
        """
        event = asyncio.Event()
        self._subscribers.setdefault(key, set()).add(event)
        try:
            yield event
        finally:
            subscribers = self._subscribers[key]
            subscribers.discard(event)
            if not subscribers:
                del self._subscribers[key]
