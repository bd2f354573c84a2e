"""Rates are measured again when the limits of the box change."""

import asyncio
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import BenchmarkError
from agent.hardware import HardwareMonitor
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

    monitor = HardwareMonitor(
        tmp_path / "benchmark.json",
        boxes.popleft,
        read_limits=lambda: seen.popleft() if seen else "half",
        measure=measure,
    )
    await monitor.benchmark()
    watching = asyncio.create_task(monitor.watch(seconds=0))
    async with asyncio.timeout(10):
        await again.wait()
        while monitor.facts.benchmark.memory_bytes_per_second != 2e9:  # noqa: ASYNC110 - its own task
            await asyncio.sleep(0)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert measured == [4, 2]


async def test_a_box_that_cannot_be_measured_keeps_its_facts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def measure(_: Path, __: DeviceFacts) -> MicroBenchmark:
        raise BenchmarkError("no", advice="")

    monitor = HardwareMonitor(tmp_path / "benchmark.json", lambda: FACTS, measure=measure)
    await monitor.benchmark()
    assert monitor.facts == FACTS
    assert "benchmark_failed" in caplog.text
