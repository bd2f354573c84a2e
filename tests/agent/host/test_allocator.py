import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from agent.host import allocator
from agent.host.allocator import IdleTrim, return_freed_memory

MIB = 1 << 20
# Takes and frees what a body of 1 MB does, again and again; prints how often a page was new to it.
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


def test_freed_memory_between_what_stays_is_given_back() -> None:
    # Small enough to lie in the heap, and too big for Python's own pools.
    blocks = [bytearray(2000) for _ in range(32 * MIB // 2000)]
    kept = blocks[::50]
    blocks.clear()
    before = resident_bytes()
    return_freed_memory()
    assert before - resident_bytes() > 16 * MIB
    assert kept


def test_memory_of_one_request_is_at_hand_for_the_next() -> None:
    ran = subprocess.run([sys.executable, "-c", REQUESTS], capture_output=True, check=True)
    # Ten requests of three times 256 pages.
    assert int(ran.stdout) < 10 * 256


async def test_many_changes_are_trimmed_up_after_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[float] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(allocator, "return_freed_memory", lambda: trimmed.append(loop.time()))
    trim = IdleTrim(quiet_seconds=0.01)
    for _ in range(3):
        trim.schedule()
    await asyncio.sleep(0.03)
    assert len(trimmed) == 1
    trim.schedule()
    await asyncio.sleep(0.03)
    assert len(trimmed) == 2


async def test_nothing_is_trimmed_up_while_things_change(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[float] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(allocator, "return_freed_memory", lambda: trimmed.append(loop.time()))
    trim = IdleTrim(quiet_seconds=0.2)
    for _ in range(5):
        trim.schedule()
        await asyncio.sleep(0.06)
    changed_last = loop.time() - 0.06
    async with asyncio.timeout(5):
        while not trimmed:  # noqa: ASYNC110 - a timer's doing
            await asyncio.sleep(0.01)
    assert trimmed[0] - changed_last >= 0.13
