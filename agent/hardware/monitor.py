"""The daemon's current hardware facts: measured at the start and after a change of limits."""

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

# Interval between reads of the cgroup limits and the CPU affinity.
POLL_SECONDS: Final = 60.0


async def measure_briefly(directory: Path, facts: DeviceFacts) -> MicroBenchmark:
    """Measure one round only, because enrolment waits for it; probation corrects the figures."""
    return await measure_now(directory, facts, rounds=1)


class HardwareMonitor:
    """Holds the box's ``facts``; their rates are 0 until ``benchmark`` has run."""

    def __init__(
        self,
        path: Path,
        read: Callable[[], DeviceFacts] = read_facts,
        *,
        read_limits: Callable[[], object] = limits,
        measure: Measure = measure_briefly,
    ) -> None:
        self._path = path
        self._read = read
        self._read_limits = read_limits
        self._measure = measure
        self._limits = read_limits()
        self.facts = read()

    async def benchmark(self) -> None:
        """Add the measured rates to ``facts``; on failure predictions work without them."""
        try:
            measured = await benchmark(self._path, self.facts, measure=self._measure)
            self.facts = replace(self.facts, benchmark=measured)
        except BenchmarkError as error:
            log.warning("benchmark_failed error=%s", ascii(str(error)))

    async def watch(self, seconds: float = POLL_SECONDS) -> None:
        """Read the facts and measure again whenever a limit changes; runs until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            current = self._read_limits()
            if current == self._limits:
                continue
            log.info("limits_changed before=%s now=%s", self._limits, current)
            self._limits = current
            # Rates measured under the old limits no longer hold.
            self.facts = self._read()
            await self.benchmark()
