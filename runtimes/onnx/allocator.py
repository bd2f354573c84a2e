"""What the C library keeps of the memory that loading a model frees.

ONNX Runtime packs each weight for the processor and frees the original. glibc maps a large piece by
itself and returns it when it is freed; but after the first it takes pieces of that size from its
heap, where those that are freed lie between others and stay resident. Measured, a model of 140 MB
that needs 141 took 156 to 230.
"""

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Final

# While loading, weights are mapped each by itself: smaller pieces are not worth a mapping.
_MAPPED_BYTES: Final = 128 << 10
# What glibc comes to by itself once large pieces were freed: arrays of a run stay at hand.
_MAPPED_LATER_BYTES: Final = 32 << 20
_KEPT_LATER_BYTES: Final = 64 << 20
# mallopt(3).
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


@contextlib.contextmanager
def returning_freed() -> Iterator[None]:
    """While it lasts, and at its end, the kernel gets back what is freed.

    Other C libraries than glibc have no such options, or say with 0 that they do not know them.
    """
    library = ctypes.CDLL(None)
    option = getattr(library, "mallopt", None)
    if option is None:
        yield
        return
    option(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
    try:
        yield
    finally:
        option(_M_MMAP_THRESHOLD, _MAPPED_LATER_BYTES)
        option(_M_TRIM_THRESHOLD, _KEPT_LATER_BYTES)
        if trim := getattr(library, "malloc_trim", None):
            trim(0)
