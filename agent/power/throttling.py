"""Whether the box slows itself down now, by what the kernel and the firmware say of it."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 10.0
MAX_ENTRIES: Final = 256
# Cooling that slows the CPU down: ACPI's, then that of the boards with device trees.
CPU_COOLING: Final = ("Processor", "thermal-cpufreq", "cpufreq")
# Raspberry Pi firmware: what holds now, by bit.
PI_FLAGS: Final = {0: "under_voltage", 1: "frequency_capped", 2: "throttled", 3: "soft_temperature"}


@dataclass(slots=True)
class ThrottleWatch:
    """Looks at one box; counters that only rise are compared with the last look."""

    root: Path = Path("/")
    _counts: dict[Path, int] = field(default_factory=dict)

    def reasons(self) -> frozenset[str]:
        """Why the box is slower than it could be; empty when it is not, or does not tell."""
        return frozenset(
            [*self._capped_frequency(), *self._hot_zones(), *self._pi_flags(), *self._events()]
        )

    def _capped_frequency(self) -> Iterator[str]:
        """The kernel limits a CPU's frequency below what it allowed before, or cools it so."""
        for policy in self._entries("sys/devices/system/cpu/cpufreq", "policy[0-9]*"):
            path = policy / "scaling_max_freq"
            allowed = _number(path)
            if allowed is not None:
                most = self._counts[path] = max(allowed, self._counts.get(path, 0))
                if allowed < most:
                    yield "cpu_frequency_capped"
        for device in self._entries("sys/class/thermal", "cooling_device[0-9]*"):
            cools_cpu = _text(device / "type").startswith(CPU_COOLING)
            if cools_cpu and (_number(device / "cur_state") or 0) > 0:
                yield "cpu_frequency_capped"

    def _hot_zones(self) -> Iterator[str]:
        """Thermal zones at or above a passive trip point, where the kernel begins to throttle."""
        for zone in self._entries("sys/class/thermal", "thermal_zone[0-9]*"):
            now = _number(zone / "temp")
            for kind in sorted(zone.glob("trip_point_[0-9]*_type"))[:MAX_ENTRIES]:
                trip = _number(kind.with_name(kind.name.removesuffix("_type") + "_temp"))
                if _text(kind) == "passive" and now is not None and trip and now >= trip:
                    yield "thermal"
                    return

    def _pi_flags(self) -> Iterator[str]:
        flags = _number(self.root / "sys/devices/platform/soc/soc:firmware/get_throttled", base=16)
        if flags is not None:
            yield from (name for bit, name in PI_FLAGS.items() if flags >> bit & 1)

    def _events(self) -> Iterator[str]:
        """Intel's counts of thermal throttling and Jetson's of over-current, rising."""
        counts = "cpu[0-9]*/thermal_throttle/package_throttle_count"
        for path in self._entries("sys/devices/system/cpu", counts):
            if self._rose(path):
                yield "thermal"
        for path in self._entries("sys/class/hwmon", "hwmon[0-9]*/oc[0-9]*_event_cnt"):
            if self._rose(path):
                yield "over_current"

    def _rose(self, path: Path) -> bool:
        count = _number(path)
        if count is None:
            return False
        before = self._counts.get(path, count)
        self._counts[path] = count
        return count > before

    def _entries(self, folder: str, pattern: str) -> list[Path]:
        return sorted((self.root / folder).glob(pattern))[:MAX_ENTRIES]


class ThrottleTally:
    """How long the box has been slowed down since the agent started, and why it is now."""

    def __init__(self, watch: ThrottleWatch) -> None:
        self.seconds = 0.0
        self.reasons = watch.reasons()
        self._watch = watch

    async def keep(self) -> None:
        """Looks again and again, until cancelled; what it saw last holds until the next look."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look(LOOK_SECONDS)

    def look(self, seconds: float) -> None:
        """Counts the time since the last look, and looks."""
        if self.reasons:
            self.seconds += seconds
        reasons = self._watch.reasons()
        if reasons != self.reasons:
            log.warning("throttling reasons=%s", ",".join(sorted(reasons)) or "none")
        self.reasons = reasons


def _number(path: Path, base: int = 10) -> int | None:
    try:
        return int(path.read_text().strip(), base)
    except (OSError, ValueError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
