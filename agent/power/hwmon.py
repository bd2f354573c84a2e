"""INA power monitors on the board's supply, through hwmon: instantaneous power.

Sources: Documentation/hwmon/sysfs-interface.rst (millivolts, milliamperes, microwatts) and
Documentation/hwmon/ina3221.rst: besides its three channels this chip lists their shunt voltages as
in4 to in7 and the sum of their currents as curr4; these are not channels.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.power.integral import IntegratedMeter
from artifact.window import Provenance

CHIPS: Final = frozenset({"ina219", "ina220", "ina226", "ina228", "ina238", "ina3221"})
# The rail that feeds all others: Jetson modules with one supply, then Jetson Nano and TX.
TOTAL_LABELS: Final = ("VDD_IN", "VIN", "POM_5V_IN", "VDD_SYS_IN", "5V_IN")
# Jetson AGX Orin has no single one: these three together feed all others.
AGX_ORIN_LABELS: Final = frozenset({"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"})
INA3221_CHANNELS: Final = frozenset({"1", "2", "3"})


@dataclass(frozen=True, slots=True)
class Channel:
    """One supply rail of a chip."""

    chip: str
    label: str
    power: Path | None
    voltage: Path
    current: Path

    def watts(self) -> float:
        """Return the present power, at least 0; OSError or ValueError if unreadable."""
        if self.power is not None:
            return max(0.0, int(self.power.read_text()) / 1e6)
        return max(0.0, int(self.voltage.read_text()) * int(self.current.read_text()) / 1e6)


def open_ina(root: Path, clock: Callable[[], float] = time.monotonic) -> IntegratedMeter | None:
    """Open a meter over the rails that together feed the board, chosen by their labels."""
    channels = list(_channels(root))
    fed = _whole_board(channels)
    if not fed:
        return None
    source = fed[0].chip
    try:
        return IntegratedMeter(
            lambda: sum(channel.watts() for channel in fed),
            Provenance(source, "board", "integrated"),
            clock,
        )
    except (OSError, ValueError):
        return None


def _whole_board(channels: list[Channel]) -> list[Channel]:
    for label in TOTAL_LABELS:
        total = [channel for channel in channels if channel.label == label]
        if total:
            return total[:1]
    # Jetson Thor: an unlabelled one-channel monitor measures the input; other chips label rails.
    unnamed = [c for c in channels if not c.label and c.chip != "ina3221"]
    if unnamed:
        return unnamed[:1]
    orin = [channel for channel in channels if channel.label in AGX_ORIN_LABELS]
    if len(orin) == len(AGX_ORIN_LABELS):
        return orin
    # Unknown board: assume that the rails of its first chip are all rails.
    return [c for c in channels if c.current.parent == channels[0].current.parent]


def _channels(root: Path) -> Iterator[Channel]:
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon[0-9]*")):
        try:
            name = (chip / "name").read_text().strip()
        except OSError:
            continue
        if name in CHIPS:
            yield from _channels_of(chip, name)


def _channels_of(chip: Path, name: str) -> Iterator[Channel]:
    for current in sorted(chip.glob("curr[0-9]*_input")):
        number = current.name.removeprefix("curr").removesuffix("_input")
        if name == "ina3221" and number not in INA3221_CHANNELS:
            continue
        voltage = chip / f"in{number}_input"
        power = chip / f"power{number}_input"
        channel = Channel(
            chip=name,
            label=_text(chip / f"in{number}_label"),
            power=power if power.exists() else None,
            voltage=voltage,
            current=current,
        )
        if _answers(channel):
            yield channel


def _answers(channel: Channel) -> bool:
    """Return True if a channel has a reading; disabled or unconnected channels have none."""
    try:
        channel.watts()
    except (OSError, ValueError):
        return False
    return True


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
