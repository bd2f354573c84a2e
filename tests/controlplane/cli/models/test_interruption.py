"""Ctrl-C during a build, which native code may have swallowed."""

import ctypes
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from controlplane.cli.models.interruption import interruptible


@pytest.fixture(autouse=True)
def sigint_as_in_the_foreground() -> Iterator[None]:
    """Restore Python's handler: a shell that runs the tests in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_within_a_callback_of_native_code_ends_the_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dropped: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)
    compare_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

    def interrupted(_: int, __: int) -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    numbers = (ctypes.c_int * 2)(2, 1)

    def build() -> None:
        with interruptible() as check_interrupt:
            size = ctypes.sizeof(ctypes.c_int)
            ctypes.CDLL(None).qsort(numbers, 2, size, compare_type(interrupted))
            # ctypes has reported the KeyboardInterrupt and dropped it: qsort returned.
            assert [one.exc_type for one in dropped] == [KeyboardInterrupt]
            check_interrupt()

    with pytest.raises(KeyboardInterrupt):
        build()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_failure_that_the_interrupt_caused_is_an_interrupt() -> None:
    def fail() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise RuntimeError from error

    with pytest.raises(KeyboardInterrupt), interruptible():
        fail()


def test_other_failures_pass() -> None:
    with pytest.raises(RuntimeError), interruptible():
        raise RuntimeError


def test_a_process_in_the_background_ignores_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
