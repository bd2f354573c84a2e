"""Thermal and power throttling, as the kernel and the firmware report it."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 10.0
MAX_ENTRIES: Final = 256
# Cooling devices that slow the CPU down: ACPI's, then those of device trees.
CPU_COOLING: Final = ("Processor", "thermal-cpufreq", "cpufreq")
# Raspberry Pi firmware: present conditions, by bit.
PI_FLAGS: Final = {0: "under_voltage", 1: "frequency_capped", 2: "throttled", 3: "soft_temperature"}


@dataclass(slots=True)
class ThrottleReader:
    """Reads the throttling state of one box; counters are compared with the previous reading."""

    root: Path = Path("/")
    _counts: dict[Path, int] = field(default_factory=dict)

    def reasons(self) -> frozenset[str]:
        """Return why the box is throttled; empty if it is not, or does not report it."""
        return frozenset(
            [*self._capped_frequency(), *self._hot_zones(), *self._pi_flags(), *self._events()]
        )

    def _capped_frequency(self) -> Iterator[str]:
        """Yield a reason if a CPU's frequency limit was lowered, or a cooling device is active."""
        for policy in self._entries("sys/devices/system/cpu/cpufreq", "policy[0-9]*"):
            path = policy / "scaling_max_freq"
            allowed = _number(path)
            if allowed is not None:
                # The highest limit seen stands for the normal one, which the owner may have set.
                highest = self._counts[path] = max(allowed, self._counts.get(path, 0))
                if allowed < highest:
                    yield "cpu_frequency_capped"
        for device in self._entries("sys/class/thermal", "cooling_device[0-9]*"):
            cools_cpu = _text(device / "type").startswith(CPU_COOLING)
            if cools_cpu and (_number(device / "cur_state") or 0) > 0:
                yield "cpu_frequency_capped"

    def _hot_zones(self) -> Iterator[str]:
        """Yield a reason if a zone is at its passive trip point, where the kernel throttles."""
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
        """Yield reasons for increasing counters: Intel's thermal and Jetson's over-current ones."""
        counts = "cpu[0-9]*/thermal_throttle/package_throttle_count"
        for path in self._entries("sys/devices/system/cpu", counts):
            if self._increased(path):
                yield "thermal"
        for path in self._entries("sys/class/hwmon", "hwmon[0-9]*/oc[0-9]*_event_cnt"):
            if self._increased(path):
                yield "over_current"

    def _increased(self, path: Path) -> bool:
        count = _number(path)
        if count is None:
            return False
        before = self._counts.get(path, count)
        self._counts[path] = count
        return count > before

    def _entries(self, folder: str, pattern: str) -> list[Path]:
        return sorted((self.root / folder).glob(pattern))[:MAX_ENTRIES]


class ThrottleMonitor:
    """Seconds that the box was throttled since the agent started, and the present reasons."""

    def __init__(self, reader: ThrottleReader) -> None:
        self.seconds = 0.0
        self.reasons = reader.reasons()
        self._reader = reader

    async def watch(self) -> None:
        """Poll until cancelled; a state is assumed to last until the next poll."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            self.poll(POLL_SECONDS)

    def poll(self, seconds: float) -> None:
        """Add the ``seconds`` since the last poll if they were throttled, and read the state."""
        if self.reasons:
            self.seconds += seconds
        reasons = self._reader.reasons()
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
