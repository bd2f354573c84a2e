"""A limit on the processor time of a call in the same thread."""

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class _TimeIsUpError(BaseException):
    """Raised inside the call; not an Exception, so that the call's own handlers let it pass."""


def call_within(cpu_seconds: float, function: Callable[[], T]) -> T:
    """Return ``function()``; raise TimeoutError once it has used the processor for so long.

    Processor time rather than wall time: a busy device must not make an innocent call fail. Python
    code is interrupted between two instructions; a single long operation in C is not.
    """
    watch = _Watch(cpu_seconds)
    try:
        try:
            watch.start()
            return function()
        finally:
            watch.stop()
    except _TimeIsUpError:
        raise TimeoutError(f"it took more than {cpu_seconds:g} s") from None


class _Watch:
    """A thread that raises _TimeIsUpError in the watched thread."""

    def __init__(self, cpu_seconds: float) -> None:
        self._seconds = cpu_seconds
        self._target = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._target)
        self._started = time.clock_gettime(self._clock)
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="deadline", daemon=True).start()

    def stop(self) -> None:
        """End the watch; on return, no exception is pending."""
        while True:
            try:
                with self._lock:
                    self._stopped.set()
                    _raise_in(self._target, None)
            except _TimeIsUpError:
                # It arrived in this function: try again, or the watch would go on.
                continue
            return

    def _run(self) -> None:
        remaining = self._seconds
        while not self._stopped.wait(max(remaining, 0.05)):
            with self._lock:
                if self._stopped.is_set():
                    return
                used = time.clock_gettime(self._clock) - self._started
                remaining = self._seconds - used
                if remaining <= 0:
                    # Repeated, because an exception within a finalizer is ignored by Python.
                    _raise_in(self._target, _TimeIsUpError)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    exception = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), exception)
