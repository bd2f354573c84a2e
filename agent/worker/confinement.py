"""Limits that a worker process puts on itself before it opens a model."""

import ctypes
import os
import resource
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process when the daemon dies (prctl(2), PR_SET_PDEATHSIG)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        # The parent died before the call above, which then has no effect.
        os._exit(0)


def limit_memory(data_bytes: int) -> None:
    """Bound writable private memory (RLIMIT_DATA), so that a runaway allocation fails at once.

    Unlike RLIMIT_AS it does not count mapped model files and reserved address space.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if data_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))
