"""What a process gives up for good before it reads a stranger's file.

``confine_reader`` is for one that only reads a file and says what is in it. One that runs a model
takes two steps: ``confine_files`` before it imports the engine, ``confine_calls`` before it loads
the model. ``granted`` words what the kernel took part in, as ``seccomp+landlock``, or ``limits``
where it knows neither. ``seccomp (one thread)`` holds for the thread that asked and those that it
starts: threads from before may call as they like.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from runtimes.confinement import landlock, profiles, seccomp

LIMITS_ONLY: Final = "limits"
# Libraries, and what the kernel tells of processors, memory and time.
_MACHINE: Final = (
    *("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime"),
    *("/proc", "/sys", "/dev/urandom"),
)


def confine_reader(readable: Iterable[Path]) -> str:
    """From now on only these files and folders are read, and what is open already is written.

    No compiled module that is not yet imported can be imported afterwards.
    """
    locked = landlock.restrict(readable, ())
    return granted(calls=seccomp.install(profiles.reader()), landlock=locked)


def confine_files(files: Iterable[Path]) -> bool:
    """From now on, in this thread and those that it starts, only code and these files are read.

    Nothing is written but /dev/null, which an engine opens when it is imported.
    """
    places = (*_MACHINE, sys.prefix, sys.base_prefix, *sys.path)
    readable = (*(Path(place).resolve() for place in places), *files)
    return landlock.restrict((path for path in readable if path.exists()), [Path(os.devnull)])


def confine_calls() -> seccomp.Reach:
    """From now on no thread of this process opens a file for writing, connects or executes.

    Files are read and mapped as before, threads start, and sockets that are open stay open. Where
    the kernel takes it for this thread alone, that is what is returned.
    """
    return seccomp.install(profiles.engine())


def granted(*, calls: seccomp.Reach, landlock: bool) -> str:
    """In words, what the kernel granted."""
    return "+".join(filter(None, (calls, "landlock" if landlock else ""))) or LIMITS_ONLY
