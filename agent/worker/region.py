"""Memory that the daemon shares with one worker process, so that large tensors need not be sent.

The daemon makes it, hands out spans of it and says in commands where in it something lies; the
worker maps it before it gives up files and calls. The worker runs a stranger's model and may write
anywhere in it at any time: what lies here is an input for this very worker, or an answer of it that
is copied out before anybody looks at it. Its size is sealed, so that no access can fault.
"""

import fcntl
import mmap
import os
import weakref
from dataclasses import dataclass, field
from typing import Final

from agent.errors import ProtocolError

# Room for four of the longest bodies; pages that nobody wrote to take no memory.
REGION_BYTES: Final = 64 << 20
# What is shorter goes in a frame as fast.
WORTH_BYTES: Final = 64 << 10
# Kept for the next request while others come; the first spans are the first to be taken again.
KEPT_BYTES: Final = 4 << 20
QUIET_SECONDS: Final = 3.0
# Of a vector in the widest registers; numbers that lie across it are slow to read.
ALIGNMENT_BYTES: Final = 64
PAGE_BYTES: Final = mmap.PAGESIZE


@dataclass(eq=False, slots=True)
class Span:
    """Some bytes of a region, free again once nobody holds it; whoever took it holds it first."""

    region: "Region"
    offset: int
    length: int
    _holders: int = field(default=1, init=False)

    @property
    def view(self) -> memoryview:
        """Where to write."""
        return self.region.view[self.offset : self.offset + self.length]

    def read(self, start: int, length: int) -> bytes:
        """A copy, which nobody changes any more; ProtocolError for what lies outside."""
        check_inside(start, length, self.length)
        return self.region.read(self.offset + start, length)

    def retain(self) -> None:
        """One more holds it."""
        self._holders += 1

    def release(self) -> None:
        """One less does."""
        self._holders -= 1
        if self._holders == 0:
            self.region.free_span(self)


class Region:
    """The daemon's side; OSError or AttributeError where kernel or Python have no such memory."""

    def __init__(self, size: int = REGION_BYTES) -> None:
        self.size = size
        self.descriptor = os.memfd_create("tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self.descriptor)
        os.ftruncate(self.descriptor, size)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
        self._map = mmap.mmap(self.descriptor, size)
        # Where it cannot be given back later, it is refused now.
        self._map.madvise(mmap.MADV_REMOVE, 0, size)
        self.view = memoryview(self._map)
        # In the order of their offsets.
        self._taken: list[Span] = []
        # No page past this one has been written to by the daemon since it gave them back.
        self.used_bytes = 0
        self._busy = False
        self._quiet_since = 0.0

    def take(self, length: int) -> Span | None:
        """A span of so many bytes, on pages of its own; None when there is no room."""
        start = index = 0
        for span in self._taken:
            if start + length <= span.offset:
                break
            start = _whole_pages(span.offset + span.length)
            index += 1
        if length <= 0 or start + length > self.size:
            return None
        taken = Span(self, start, length)
        self._taken.insert(index, taken)
        self.used_bytes = max(self.used_bytes, _whole_pages(start + length))
        self._busy = True
        return taken

    def free_span(self, span: Span) -> None:
        """A span is free; called by the last who held it."""
        self._taken.remove(span)
        start = max(span.offset, KEPT_BYTES)
        end = _whole_pages(span.offset + span.length)
        if start < end:
            self._map.madvise(mmap.MADV_REMOVE, start, end - start)

    def release_idle_pages(self, now: float) -> None:
        """Gives the memory back that nobody took for some seconds; to be called now and then."""
        if self._busy or self._taken:
            self._busy = False
            self._quiet_since = now
        elif self.used_bytes and now - self._quiet_since >= QUIET_SECONDS:
            self._map.madvise(mmap.MADV_REMOVE, 0, self.size)
            self.used_bytes = 0

    def read(self, offset: int, length: int) -> bytes:
        """A copy of what lies here."""
        # By a call, which fails where touching a page would end the daemon.
        return os.pread(self.descriptor, length, offset)


def check_inside(offset: int, length: int, size: int) -> None:
    """ProtocolError unless these are bytes of something of this size."""
    if offset < 0 or length < 0 or offset + length > size:
        raise ProtocolError(f"{length} bytes at {offset} lie outside of {size}")


def align_up(size: int) -> int:
    """So many bytes, up to where the next may begin."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _whole_pages(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES
