"""Landlock: which files a process may still open, by the inode and not by the name.

https://docs.kernel.org/userspace-api/landlock.html. It holds for this thread, and for the threads
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
# How many rights over files each version knows, from the first on; TCP from the fourth; signals
# and abstract sockets from the sixth.
_FILE_RIGHTS: Final = (13, 14, 15, 15, 16)
_TCP_SINCE, _TCP_RIGHTS = 4, 0b11
_SCOPES_SINCE, _SCOPES = 6, 0b11


def version() -> int:
    """The kernel's; 0 where it has none, or forbids it."""
    return max(0, int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, _WANT_VERSION)))


def restrict(readable: Iterable[Path], writable: Iterable[Path]) -> bool:
    """Leaves only these files and folders to be read, these files to be written.

    Whether the kernel did so.
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
    """The kernel's landlock_ruleset_attr, as long as this version knows it."""
    rights = _FILE_RIGHTS[min(known, len(_FILE_RIGHTS)) - 1]
    fields = [(1 << rights) - 1]
    if known >= _TCP_SINCE:
        fields.append(_TCP_RIGHTS)
    if known >= _SCOPES_SINCE:
        fields.append(_SCOPES)
    return struct.pack(f"<{len(fields)}Q", *fields)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    """Of a folder, all that is in it; OSError when there is none, or the kernel wants no rule."""
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if stat.S_ISDIR(os.fstat(place).st_mode):
            rights |= _READ_DIRECTORY
        rule = struct.pack("<Qi", rights, place)
        if libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0) != 0:
            raise OSError(ctypes.get_errno(), "landlock_add_rule failed", str(path))
    finally:
        os.close(place)
