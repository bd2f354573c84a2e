"""Freed memory stays for the next request, and returns to the kernel when idle."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.host import allocator
from agent.host.allocator import IdleTrim, return_freed_memory

MIB = 1 << 20
# Allocates and frees like requests with a body of 1 MB; prints the page faults of the last ten.
REQUESTS = """
import resource
from agent.host.allocator import keep_freed_memory
keep_freed_memory()
def new_pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for request in range(20):
    if request == 10:
        before = new_pages()
    del [bytearray(b"x") * (1 << 20) for _ in range(3)][:]
print(new_pages() - before)
"""


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_freed_memory_between_live_blocks_is_returned() -> None:
    # Small enough for the heap, and too large for Python's own pools.
    blocks = [bytearray(2000) for _ in range(32 * MIB // 2000)]
    kept = blocks[::50]
    blocks.clear()
    before = resident_bytes()
    return_freed_memory()
    assert before - resident_bytes() > 16 * MIB
    assert kept


def test_memory_of_one_request_is_reused_by_the_next() -> None:
    ran = subprocess.run([sys.executable, "-c", REQUESTS], capture_output=True, check=True)
    # Ten requests of three times 256 pages.
    assert int(ran.stdout) < 10 * 256


class Clock:
    """An event loop's timers, moved on by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None], /) -> None:
        self.timers.append((when, callback))

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now = max(self.now, first[0])
            first[1]()
        self.now = end


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def trimmed(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times at which memory was returned."""
    times: list[float] = []
    monkeypatch.setattr(allocator, "return_freed_memory", lambda: times.append(clock.now))
    return times


def test_memory_is_returned_once_after_many_changes(clock: Clock, trimmed: list[float]) -> None:
    trim = IdleTrim(quiet_seconds=3, timers=lambda: clock)
    for _ in range(3):
        trim.schedule()
    clock.advance(100)
    assert trimmed == [3]
    trim.schedule()
    clock.advance(100)
    assert trimmed == [3, 103]


def test_memory_is_not_returned_while_changes_go_on(clock: Clock, trimmed: list[float]) -> None:
    trim = IdleTrim(quiet_seconds=3, timers=lambda: clock)
    for _ in range(5):
        trim.schedule()
        clock.advance(2)
    assert trimmed == []
    clock.advance(2)
    # The last change was at 8 s.
    assert trimmed == [11]
