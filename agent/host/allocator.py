"""What the C library keeps of freed memory, and how the daemon gives it back.

glibc returns freed memory to the kernel only from the top of its heap. What a start, an update or a
large request took in between stays resident for good: measured, 9 of 79 MiB. What it does return
the next request takes again, page by page: more than half of what a tensor of 1 MB cost the daemon.
"""

import asyncio
import ctypes
from typing import Final

QUIET_SECONDS: Final = 3.0
# Room for the copies of a body of 1 MB on its way; a larger piece is mapped, and returned, alone.
KEPT_BYTES: Final = 4 << 20
MAPPED_BYTES: Final = 2 << 20
# mallopt(3).
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_some() -> None:
    """Have freed memory stay at hand for the next request, at most so much, until given back."""
    # Other C libraries have no such option, or say with 0 that they do not know this one.
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(_M_TRIM_THRESHOLD, KEPT_BYTES)
        option(_M_MMAP_THRESHOLD, MAPPED_BYTES)


def give_back() -> None:
    """Return every free page of the heap to the kernel; took 3 to 30 ms."""
    # Other C libraries do so by themselves, or offer no way.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Tidying:
    """Gives memory back once it has been quiet for some seconds: looking takes milliseconds.

    Belongs to one event loop.
    """

    def __init__(self, quiet_seconds: float = QUIET_SECONDS) -> None:
        self._quiet_seconds = quiet_seconds
        self._quiet_at = 0.0
        self._due: asyncio.TimerHandle | None = None

    def soon(self) -> None:
        """Something took memory that it may not need any more."""
        loop = asyncio.get_running_loop()
        self._quiet_at = loop.time() + self._quiet_seconds
        if self._due is None:
            self._due = loop.call_at(self._quiet_at, self._tidy)

    def _tidy(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._quiet_at:
            self._due = loop.call_at(self._quiet_at, self._tidy)
            return
        self._due = None
        give_back()
