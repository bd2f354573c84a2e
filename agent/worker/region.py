"""Memory shared between the daemon and one worker process, for tensors too large for frames.

The daemon creates it, allocates spans and refers to them in commands; the worker maps it before it
is confined. The worker runs an untrusted model and may write anywhere in the region at any time.
Therefore a region only holds inputs of this worker, and outputs that the daemon copies before it
reads them. The size is sealed, so that no access can fault.
"""

import fcntl
import mmap
import os
import struct
import weakref
from dataclasses import dataclass, field
from typing import Final

from agent.errors import ProtocolError

# Room for four request bodies of the maximum size; untouched pages take no memory.
REGION_BYTES: Final = 64 << 20
# Shorter tensors are as fast in a frame.
WORTH_BYTES: Final = 64 << 10
# The first bytes stay allocated between requests, because spans are taken from the start.
KEPT_BYTES: Final = 4 << 20
QUIET_SECONDS: Final = 3.0
# Size of the widest vector register; unaligned access is slow.
ALIGNMENT_BYTES: Final = 64
PAGE_BYTES: Final = mmap.PAGESIZE
# A last page beyond the tensors, where the worker writes the highest command id it has started.
STARTED: Final = struct.Struct("<Q")


@dataclass(eq=False, slots=True)
class Span:
    """A reference-counted part of a region; ``take`` returns it with a count of one."""

    region: "Region"
    offset: int
    length: int
    _holders: int = field(default=1, init=False)

    @property
    def view(self) -> memoryview:
        """The writable memory of the span."""
        return self.region.view[self.offset : self.offset + self.length]

    def read(self, start: int, length: int) -> bytes:
        """Return a copy, which the worker cannot change; ProtocolError if outside the span."""
        check_inside(start, length, self.length)
        return self.region.read(self.offset + start, length)

    def retain(self) -> None:
        """Increment the reference count."""
        self._holders += 1

    def release(self) -> None:
        """Decrement the reference count and free the span at zero."""
        self._holders -= 1
        if self._holders == 0:
            self.region.free_span(self)


class Region:
    """The daemon's side; OSError or AttributeError if kernel or Python lack sealed memfds."""

    def __init__(self, size: int = REGION_BYTES) -> None:
        self.size = size
        self.descriptor = os.memfd_create("tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self.descriptor)
        os.ftruncate(self.descriptor, size + PAGE_BYTES)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
        self._map = mmap.mmap(self.descriptor, size)
        # Fail now if the kernel cannot release pages later.
        self._map.madvise(mmap.MADV_REMOVE, 0, size)
        self.view = memoryview(self._map)
        # Sorted by offset.
        self._taken: list[Span] = []
        # End of the pages that the daemon has used since it last released them.
        self.used_bytes = 0
        self._busy = False
        self._quiet_since = 0.0

    def take(self, length: int) -> Span | None:
        """Return a page-aligned span of ``length`` bytes; None if there is no room."""
        # First fit: low offsets are reused, which keeps the touched part of the region small.
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
        """Free a span whose reference count is zero."""
        self._taken.remove(span)
        # MADV_REMOVE frees the pages of the memfd, so that both processes give them up.
        start = max(span.offset, KEPT_BYTES)
        end = _whole_pages(span.offset + span.length)
        if start < end:
            self._map.madvise(mmap.MADV_REMOVE, start, end - start)

    def release_idle_pages(self, now: float) -> None:
        """Release the memory after some seconds without a span; call it periodically."""
        if self._busy or self._taken:
            self._busy = False
            self._quiet_since = now
        elif self.used_bytes and now - self._quiet_since >= QUIET_SECONDS:
            self._map.madvise(mmap.MADV_REMOVE, 0, self.size)
            self.used_bytes = 0

    def started_id(self) -> int:
        """Return the highest command id that the worker has started; 0 before the first."""
        return int(STARTED.unpack(self.read(self.size, STARTED.size))[0])

    def read(self, offset: int, length: int) -> bytes:
        """Return a copy of a part of the region."""
        # pread fails with an error where touching a page could end the daemon with SIGBUS.
        return os.pread(self.descriptor, length, offset)


def check_inside(offset: int, length: int, size: int) -> None:
    """Raise ProtocolError unless ``offset`` and ``length`` lie within ``size`` bytes."""
    if offset < 0 or length < 0 or offset + length > size:
        raise ProtocolError(f"{length} bytes at offset {offset} exceed the {size} available")


def align_up(size: int) -> int:
    """Round ``size`` up to the alignment of the next tensor."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _whole_pages(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES
