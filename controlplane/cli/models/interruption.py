"""Ctrl-C during a build, also if a callback of native code swallows it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class _Interrupt:
    """SIGINT as usual, and remembered.

    ctypes prints an exception that a callback raises, and returns to the native code that called:
    the KeyboardInterrupt is lost if the signal arrives while a callback runs.
    """

    def __init__(self) -> None:
        self._received = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._received = True
        # A second Ctrl-C ends the process at once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if one was requested before and lost."""
        if self._received:
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Yield a function to call often, which raises KeyboardInterrupt after Ctrl-C."""
    interrupt = _Interrupt()
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread only.
        yield interrupt.check
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell started this process in the background: Ctrl-C is meant for another one.
        yield interrupt.check
        return
    previous: Any = signal.signal(signal.SIGINT, interrupt.receive)
    try:
        yield interrupt.check
        interrupt.check()
    except Exception:
        # Native code whose callback was cut short may report that as a failure of its own.
        interrupt.check()
        raise
    finally:
        signal.signal(signal.SIGINT, previous)
