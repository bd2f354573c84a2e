"""What a worker process does to itself before it touches a model."""

import ctypes
import os
import resource
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Has the kernel kill this process when the daemon dies, however it dies (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        # It died before the call above.
        os._exit(0)


def limit_memory(data_bytes: int) -> None:
    """Bounds writable private memory (RLIMIT_DATA), so that a runaway allocation fails at once.

    Mapped model files and reserved address space do not count against it, unlike RLIMIT_AS.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if data_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    return pages * resource.getpagesize()
