"""Environment variables of processes that run an engine."""

import os
from pathlib import Path
from typing import Final

# Weights in pages of 2 MiB instead of 4 KiB: a decode step reads all of them once, and took an
# eighth less time on the machine where this was measured. C libraries other than glibc 2.35 and
# later ignore the variable, and so does a kernel with transparent huge pages switched off.
LARGE_PAGES: Final = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
# With base pages of 16 or 64 KiB, huge pages have 32 or 512 MiB. Rounding up to those would exceed
# the predicted memory of a model, and a worker above its limit is killed.
LARGE_PAGE_BYTES: Final = 2 << 20
KERNELS_PAGE: Final = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")


def in_large_pages() -> bool:
    """Return True if this process was started with weights in large pages."""
    return os.environ.items() >= LARGE_PAGES.items()


def engine_environment(kernels_page: Path = KERNELS_PAGE) -> dict[str, str]:
    """Return this process's environment plus variables for the engine's libraries.

    Variables that are set already keep their values. ``kernels_page`` is the file that holds the
    kernel's huge page size in bytes.
    """
    try:
        wanted = int(kernels_page.read_bytes()) == LARGE_PAGE_BYTES
    except (OSError, ValueError):
        wanted = False
    return (LARGE_PAGES if wanted else {}) | os.environ
