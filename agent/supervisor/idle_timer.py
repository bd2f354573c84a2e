"""A timer that unloads an idle model."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator


class IdleTimer:
    """Counts a model's callers and calls ``unload`` after ``idle_seconds`` without any.

    0 seconds disables it. All calls belong to one event loop.
    """

    def __init__(self, idle_seconds: float, unload: Callable[[], None]) -> None:
        self._idle_seconds = idle_seconds
        self._unload = unload
        self._callers = 0
        self._timer: asyncio.TimerHandle | None = None
        self.begin()

    @contextlib.contextmanager
    def caller(self) -> Iterator[None]:
        """Count a caller for the time of the ``with`` block, including its wait for a place."""
        self._callers += 1
        self.end()
        try:
            yield
        finally:
            self._callers -= 1
            self.begin()

    def end(self) -> None:
        """Stop the timer until the last caller has left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def begin(self) -> None:
        """Start the timer if there is no caller."""
        self.end()
        if self._idle_seconds > 0 and self._callers == 0:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._idle_seconds, self._unload)
