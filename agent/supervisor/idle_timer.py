"""When a model that nobody calls leaves memory."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator


class IdleTimer:
    """Counts a model's callers, and tells once it has had none for so long; 0 seconds: never.

    Belongs to one event loop.
    """

    def __init__(self, idle_seconds: float, fall_asleep: Callable[[], None]) -> None:
        self._idle_seconds = idle_seconds
        self._fall_asleep = fall_asleep
        self._callers = 0
        self._timer: asyncio.TimerHandle | None = None
        self.begin()

    @contextlib.contextmanager
    def caller(self) -> Iterator[None]:
        """Somebody calls; waiting for a turn counts."""
        self._callers += 1
        self.end()
        try:
            yield
        finally:
            self._callers -= 1
            self.begin()

    def end(self) -> None:
        """It does not fall asleep any more, until the last caller has left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def begin(self) -> None:
        """The time without a caller starts now."""
        self.end()
        if self._idle_seconds > 0 and self._callers == 0:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._idle_seconds, self._fall_asleep)
