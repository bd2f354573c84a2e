"""Landlock limits the files that a process may open, by inode and not by name.

https://docs.kernel.org/userspace-api/landlock.html. It applies to this thread, and to the threads
and processes it starts.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_WANT_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38

_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIRECTORY: Final = 1 << 3
# Number of file rights of each version, from the first on; TCP from the fourth; signals and
# abstract sockets from the sixth.
_FILE_RIGHTS: Final = (13, 14, 15, 15, 16)
_TCP_SINCE, _TCP_RIGHTS = 4, 0b11
_SCOPES_SINCE, _SCOPES = 6, 0b11


def version() -> int:
    """Return the kernel's version; 0 if it has none, or forbids it."""
    return max(0, int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, _WANT_VERSION)))


def restrict(readable: Iterable[Path], writable: Iterable[Path]) -> bool:
    """Allow reading only these files and folders, and writing only these files.

    Returns True if the kernel enforces it.
    """
    known = version()
    if not known:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = _ruleset(known)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    try:
        for path in readable:
            _allow(libc, ruleset, path, _READ_FILE)
        for path in writable:
            _allow(libc, ruleset, path, _READ_FILE | _WRITE_FILE)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return False
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _ruleset(known: int) -> bytes:
    """Return the kernel's landlock_ruleset_attr in the size of this version."""
    rights = _FILE_RIGHTS[min(known, len(_FILE_RIGHTS)) - 1]
    fields = [(1 << rights) - 1]
    if known >= _TCP_SINCE:
        fields.append(_TCP_RIGHTS)
    if known >= _SCOPES_SINCE:
        fields.append(_SCOPES)
    return struct.pack(f"<{len(fields)}Q", *fields)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    """Allow rights on a file or below a folder; OSError if it is missing or the kernel refuses."""
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if stat.S_ISDIR(os.fstat(place).st_mode):
            rights |= _READ_DIRECTORY
        rule = struct.pack("<Qi", rights, place)
        if libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0) != 0:
            raise OSError(ctypes.get_errno(), "landlock_add_rule failed", str(path))
    finally:
        os.close(place)
