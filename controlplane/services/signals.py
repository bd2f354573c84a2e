"""Waking whoever waits for a change, within this process.

A signal carries nothing: the one woken looks at the store anew, so signals may merge, and a missed
one costs no more than the next look.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final

# Something that a rollout might decide on has changed.
FLEET_CHANGED: Final = "fleet"


_DEVICE: Final = "device/"


def device_key(device_id: str) -> str:
    return f"{_DEVICE}{device_id}"


def rollout_key(rollout_id: str) -> str:
    return f"rollout/{rollout_id}"


class Signals:
    """Keys, and the events of those who subscribed to them. Used from one event loop."""

    def __init__(self) -> None:
        self._subscribers: dict[str, set[asyncio.Event]] = {}

    def notify(self, key: str) -> None:
        for event in self._subscribers.get(key, ()):
            event.set()

    def notify_devices(self) -> None:
        """Something that concerns every device has changed."""
        for key in list(self._subscribers):
            if key.startswith(_DEVICE):
                self.notify(key)

    @contextlib.contextmanager
    def subscribe(self, key: str) -> Iterator[asyncio.Event]:
        """An event that is set at every notification: clear it, look, then wait for it."""
        event = asyncio.Event()
        self._subscribers.setdefault(key, set()).add(event)
        try:
            yield event
        finally:
            subscribers = self._subscribers[key]
            subscribers.discard(event)
            if not subscribers:
                del self._subscribers[key]
