"""A battery that feeds the box: its output is the power of the whole box.

Source: Documentation/ABI/testing/sysfs-class-power. Units are microwatts, or microvolts and
microamperes. While a charger feeds the box, the battery is not a meter.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.power.integral import IntegratedMeter
from artifact.window import Provenance


@dataclass(frozen=True, slots=True)
class Battery:
    """One battery under /sys/class/power_supply."""

    path: Path

    def watts(self) -> float:
        """Return the present output; ValueError unless discharging, OSError if removed."""
        status = (self.path / "status").read_text().strip()
        if status != "Discharging":
            raise ValueError(f"the battery is {status[:20]!a}, not discharging")
        power = self.path / "power_now"
        # Some drivers report a discharge as a negative value.
        if power.exists():
            return abs(int(power.read_text())) / 1e6
        voltage = int((self.path / "voltage_now").read_text())
        return voltage * abs(int((self.path / "current_now").read_text())) / 1e12


def open_battery(root: Path, clock: Callable[[], float] = time.monotonic) -> IntegratedMeter | None:
    """Open a meter over the batteries that feed the box now."""
    batteries = [Battery(path) for path in sorted((root / "sys/class/power_supply").glob("*"))]
    feeding = [battery for battery in batteries if _feeds(battery)]
    if not feeding:
        return None
    return IntegratedMeter(
        lambda: sum(battery.watts() for battery in feeding),
        Provenance("battery", "board", "integrated"),
        clock,
    )


def _feeds(battery: Battery) -> bool:
    try:
        if (battery.path / "type").read_text().strip() != "Battery":
            return False
        scope = battery.path / "scope"
        # Batteries of peripherals, such as a wireless mouse.
        if scope.exists() and scope.read_text().strip() == "Device":
            return False
        return battery.watts() > 0
    except (OSError, ValueError):
        return False
