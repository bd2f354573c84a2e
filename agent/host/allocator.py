"""The C library's cache of freed memory: kept between requests, returned when idle.

glibc returns freed memory to the kernel only from the top of its heap. Memory that a start, an
update or a large request used below that stays resident (measured: 9 of 79 MiB). Memory that it
does return is faulted in again, page by page, by the next request: that was more than half of the
daemon's cost for a tensor of 1 MB.
"""

import asyncio
import ctypes
from typing import Final

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


class IdleTrim:
    """Returns freed memory once the daemon has been idle for ``quiet_seconds``.

    Not at once, because each call takes milliseconds. Use from one event loop.
    """

    def __init__(self, quiet_seconds: float = QUIET_SECONDS) -> None:
        self._quiet_seconds = quiet_seconds
        self._quiet_at = 0.0
        self._due: asyncio.TimerHandle | None = None

    def schedule(self) -> None:
        """Return memory after the next idle period; each call starts the period again."""
        loop = asyncio.get_running_loop()
        self._quiet_at = loop.time() + self._quiet_seconds
        if self._due is None:
            self._due = loop.call_at(self._quiet_at, self._trim)

    def _trim(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._quiet_at:
            self._due = loop.call_at(self._quiet_at, self._trim)
            return
        self._due = None
        return_freed_memory()
