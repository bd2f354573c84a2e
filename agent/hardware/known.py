"""The box as the daemon knows it: measured once, and again when its limits change."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from agent.errors import BenchmarkError
from agent.hardware.facts import limits, read_facts
from agent.hardware.rates import Measure, benchmark, measure_now
from artifact.device_facts import DeviceFacts, MicroBenchmark

log = logging.getLogger(__name__)

# How often the cgroup and the affinity are looked at.
LOOK_SECONDS: Final = 60.0


async def measure_briefly(directory: Path, facts: DeviceFacts) -> MicroBenchmark:
    """One round: the control plane waits for it, and what probation measures corrects it."""
    return await measure_now(directory, facts, rounds=1)


class KnownHardware:
    """``facts`` are the box's; their rates are zeros until it was measured."""

    def __init__(
        self,
        path: Path,
        read: Callable[[], DeviceFacts] = read_facts,
        *,
        look: Callable[[], object] = limits,
        measure: Measure = measure_briefly,
    ) -> None:
        self._path = path
        self._read = read
        self._look = look
        self._measure = measure
        self._limits = look()
        self.facts = read()

    async def benchmark(self) -> None:
        """Know the rates too; without them predictions have less to go by."""
        try:
            measured = await benchmark(self._path, self.facts, measure=self._measure)
            self.facts = replace(self.facts, benchmark=measured)
        except BenchmarkError as error:
            log.warning("benchmark_failed error=%s", ascii(str(error)))

    async def watch(self, seconds: float = LOOK_SECONDS) -> None:
        """For good: what was measured under other limits holds no longer."""
        while True:
            await asyncio.sleep(seconds)
            found = self._look()
            if found == self._limits:
                continue
            log.info("limits_changed before=%s now=%s", self._limits, found)
            self._limits = found
            self.facts = self._read()
            await self.benchmark()
