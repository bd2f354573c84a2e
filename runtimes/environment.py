"""The environment that a process starts with in which an engine is to run."""

import os
from pathlib import Path
from typing import Final

# Weights in pages of 2 MiB instead of 4 KiB: a step of generation reads all of them once, and on
# the machine where this was measured it took an eighth less time. C libraries other than glibc 2.35
# and later pass this over, and so does a kernel that has such pages switched off.
LARGE_PAGES: Final = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
# Where base pages have 16 or 64 KiB, large ones have 32 or 512 MiB: what a model takes is predicted
# more finely than that, and a worker that takes more than it may is ended.
LARGE_PAGE_BYTES: Final = 2 << 20
KERNELS_PAGE: Final = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")


def in_large_pages() -> bool:
    """Whether this process was started with weights in large pages."""
    return os.environ.items() >= LARGE_PAGES.items()


def engine_environment(kernels_page: Path = KERNELS_PAGE) -> dict[str, str]:
    """This process's own, and what an engine's libraries read when they start, unless it is set.

    ``kernels_page`` tells how many bytes a large page has.
    """
    try:
        wanted = int(kernels_page.read_bytes()) == LARGE_PAGE_BYTES
    except (OSError, ValueError):
        wanted = False
    return (LARGE_PAGES if wanted else {}) | os.environ
