"""Interception of all calls by which the agent changes its disk, and a disk that fails."""

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# The calls of write_file, FileStore and Partial, direct or through pathlib.
CALLS = ("open", "ftruncate", "pwrite", "fsync", "chmod", "rename", "replace", "unlink")
Before = Callable[[str], None]
After = Callable[[str, tuple[Any, ...]], None]


class _TappedFile(io.FileIO):
    """Return the raw file below os.fdopen's buffer."""

    before: Before = staticmethod(lambda _: None)

    def write(self, data: Any) -> int:
        self.before("write")
        return super().write(data) or 0


@contextmanager
def tapped(before: Before, after: After = lambda *_: None) -> Iterator[None]:
    """Intercept calls: ``before`` may raise instead of one, ``after`` sees the completed one."""

    def tap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **kwargs)
            before(name)
            result = real(*args, **kwargs)
            after(name, args)
            return result

        return call

    def fdopen(descriptor: int, _mode: str) -> io.BufferedWriter:
        raw = _TappedFile(descriptor, "wb")
        raw.before = before
        return io.BufferedWriter(raw)

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, tap(name, getattr(os, name)))
        patch.setattr(os, "fdopen", fdopen)
        yield


class Fault:
    """Raise the error of a failing disk at its ``nth`` call (of one ``kind``, or of any)."""

    def __init__(self, number: int, *, nth: int = 0, kind: str = "", forever: bool = False) -> None:
        self.hit = ""
        self._number = number
        self._left = nth
        self._kind = kind
        self._forever = forever

    def __call__(self, call: str) -> None:
        if self._kind not in {"", call} or (self.hit and not self._forever):
            return
        if not self.hit and self._left:
            self._left -= 1
            return
        self.hit = self.hit or call
        raise OSError(self._number, os.strerror(self._number))


FULL, BROKEN = errno.ENOSPC, errno.EIO
