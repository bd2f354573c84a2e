"""Descriptions of how a process ended."""

import subprocess
import sys

import pytest

from runtimes.endings import ending_of


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("sys.exit(3)", "exited with code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
        # Real-time signals have no name.
        ("os.kill(os.getpid(), signal.SIGRTMIN + 3)", "was ended by signal 37"),
    ],
)
def test_a_process_that_ended_is_described_with_its_signal(way: str, words: str) -> None:
    program = f"import os, signal, sys; {way}"
    assert (
        ending_of(subprocess.run([sys.executable, "-c", program], check=False).returncode) == words
    )
