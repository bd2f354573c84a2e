"""The C library's cache of freed memory: kept between requests, returned when idle.

glibc returns freed memory to the kernel only from the top of its heap. Memory that a start, an
update or a large request used below that stays resident (measured: 9 of 79 MiB). Memory that it
does return is faulted in again, page by page, by the next request: that was more than half of the
daemon's cost for a tensor of 1 MB.
"""

import asyncio
import ctypes
from collections.abc import Callable
from typing import Final, Protocol

QUIET_SECONDS: Final = 3.0
# Room for the copies of a 1 MB body in transit; a larger block is mapped and returned separately.
KEPT_BYTES: Final = 4 << 20
MAPPED_BYTES: Final = 2 << 20
# Parameters of mallopt(3).
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_freed_memory() -> None:
    """Let the allocator keep up to KEPT_BYTES of freed memory for the next request."""
    # Other C libraries have no mallopt, or return 0 for options that they do not know.
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(_M_TRIM_THRESHOLD, KEPT_BYTES)
        option(_M_MMAP_THRESHOLD, MAPPED_BYTES)


def return_freed_memory() -> None:
    """Return every free page of the heap to the kernel; measured 3 to 30 ms."""
    # Other C libraries return pages by themselves, or have no such call.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Timers(Protocol):
    """The part of an event loop that IdleTrim uses."""

    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[[], None], /) -> object: ...


class IdleTrim:
    """Returns freed memory once the daemon has been idle for ``quiet_seconds``.

    Not at once, because each call takes milliseconds. Use from one event loop.
    """

    def __init__(
        self,
        quiet_seconds: float = QUIET_SECONDS,
        timers: Callable[[], Timers] = asyncio.get_running_loop,
    ) -> None:
        self._quiet_seconds = quiet_seconds
        self._timers = timers
        self._quiet_at = 0.0
        self._is_scheduled = False

    def schedule(self) -> None:
        """Return memory after the next idle period; each call starts the period again."""
        timers = self._timers()
        self._quiet_at = timers.time() + self._quiet_seconds
        # One timer at a time: it reads _quiet_at when it fires, so that a call needs no new timer.
        if not self._is_scheduled:
            self._is_scheduled = True
            timers.call_at(self._quiet_at, self._trim)

    def _trim(self) -> None:
        timers = self._timers()
        if timers.time() < self._quiet_at:
            timers.call_at(self._quiet_at, self._trim)
            return
        self._is_scheduled = False
        return_freed_memory()
