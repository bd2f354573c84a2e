"""AMD graphics through the hwmon interface of the ``amdgpu`` driver: power, no energy counter.

Source: the kernel's "AMDGPU driver thermal" documentation. ``power1_average``, or ``power1_input``
on chips without an average, in microwatts. On an APU it covers the whole package, CPU included. The
voltage ``in1`` is the northbridge's, which only APUs have.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from agent.power.integral import IntegratedMeter
from artifact.window import Provenance

MAX_CHIPS: Final = 256
READINGS: Final = ("power1_average", "power1_input")


def open_amdgpu(root: Path, clock: Callable[[], float] = time.monotonic) -> IntegratedMeter | None:
    """Open a meter over the APU if there is one, else over all graphics cards."""
    readings = list(_readings(root))
    packages = [reading for reading in readings if (reading.parent / "in1_input").exists()]
    metered = packages or readings
    if not metered:
        return None
    provenance = Provenance("amdgpu", "package" if packages else "gpu", "integrated")
    try:
        return IntegratedMeter(lambda: sum(map(_watts, metered)), provenance, clock)
    except (OSError, ValueError):
        return None


def _readings(root: Path) -> Iterator[Path]:
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon[0-9]*"))[:MAX_CHIPS]:
        try:
            if (chip / "name").read_text().strip() != "amdgpu":
                continue
        except OSError:
            continue
        there = [chip / name for name in READINGS if (chip / name).exists()]
        yield from there[:1]


def _watts(reading: Path) -> float:
    """Read the power in watts; raise OSError or ValueError if the chip does not answer."""
    # Reading a sensor would wake a suspended card.
    status = reading.parent / "device/power/runtime_status"
    if status.exists() and status.read_text().strip() == "suspended":
        return 0.0
    return int(reading.read_text()) / 1e6
