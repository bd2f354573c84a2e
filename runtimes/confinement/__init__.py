"""Confine a process with seccomp and Landlock before it reads an untrusted file."""

from runtimes.confinement.process import (
    LIMITS_ONLY,
    confine_calls,
    confine_files,
    confine_reader,
    granted,
)

__all__ = ["LIMITS_ONLY", "confine_calls", "confine_files", "confine_reader", "granted"]
