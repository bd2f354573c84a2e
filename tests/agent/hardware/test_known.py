"""What was measured holds as long as the limits that it was measured under."""

import asyncio
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import BenchmarkError
from agent.hardware import KnownHardware
from artifact.device_facts import DeviceFacts, MicroBenchmark
from tests.agent.selection.test_ranking import FACTS


async def test_changed_limits_are_measured_again(tmp_path: Path) -> None:
    boxes = deque([FACTS, replace(FACTS, cores=2)])
    seen = deque(["whole", "whole", "half"])
    measured: list[int] = []
    again = asyncio.Event()

    async def measure(_: Path, facts: DeviceFacts) -> MicroBenchmark:
        measured.append(facts.cores)
        if len(measured) > 1:
            again.set()
        return MicroBenchmark(memory_bytes_per_second=facts.cores * 1e9)

    known = KnownHardware(
        tmp_path / "benchmark.json",
        boxes.popleft,
        look=lambda: seen.popleft() if seen else "half",
        measure=measure,
    )
    await known.benchmark()
    watching = asyncio.create_task(known.watch(seconds=0))
    async with asyncio.timeout(10):
        await again.wait()
        while known.facts.benchmark.memory_bytes_per_second != 2e9:  # noqa: ASYNC110 - its own task
            await asyncio.sleep(0)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert measured == [4, 2]


async def test_a_box_that_cannot_be_measured_is_known_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def measure(_: Path, __: DeviceFacts) -> MicroBenchmark:
        raise BenchmarkError("no", advice="")

    known = KnownHardware(tmp_path / "benchmark.json", lambda: FACTS, measure=measure)
    await known.benchmark()
    assert known.facts == FACTS
    assert "benchmark_failed" in caplog.text
