"""Confine the current process, irrevocably, before it reads an untrusted file.

A process that only inspects a file calls ``confine_reader``. A process that runs a model takes two
steps: ``confine_files`` before it imports the engine, and ``confine_calls`` before it loads the
model. ``granted`` describes what the kernel enforces: ``seccomp+landlock``, one of them, or
``limits`` for neither. ``seccomp (one thread)`` covers the calling thread and threads that it
starts later; threads that existed before are not restricted.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from runtimes.confinement import call_filters, landlock, seccomp

LIMITS_ONLY: Final = "limits"
# Libraries, and the kernel's files on processors, memory and time.
_MACHINE: Final = (
    *("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime"),
    *("/proc", "/sys", "/dev/urandom"),
)


def confine_reader(readable: Iterable[Path]) -> str:
    """Allow reading only these files and folders, and writing only to open descriptors.

    Compiled modules can no longer be imported afterwards. Returns what the kernel granted.
    """
    locked = landlock.restrict(readable, ())
    return granted(calls=seccomp.install(call_filters.reader()), landlock=locked)


def confine_files(files: Iterable[Path]) -> bool:
    """Allow this thread and threads that it starts to open only code and these files.

    Only /dev/null can be opened for writing, because engines open it when they are imported.
    """
    places = (*_MACHINE, sys.prefix, sys.base_prefix, *sys.path)
    readable = (*(Path(place).resolve() for place in places), *files)
    return landlock.restrict((path for path in readable if path.exists()), [Path(os.devnull)])


def confine_calls() -> seccomp.Reach:
    """Forbid all threads to open files for writing, to connect and to execute programs.

    Reading, mapping, starting threads and using open sockets remain possible. Returns whether the
    kernel applied this to all threads or to the calling thread only.
    """
    return seccomp.install(call_filters.engine())


def granted(*, calls: seccomp.Reach, landlock: bool) -> str:
    """Describe what the kernel granted."""
    return "+".join(filter(None, (calls, "landlock" if landlock else ""))) or LIMITS_ONLY
