"""Find the best power meter whose reading increases; drivers may offer sensors that stay at 0."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent.errors import MeterLostError
from agent.power.amdgpu import open_amdgpu
from agent.power.battery import open_battery
from agent.power.energy import PowerMeter
from agent.power.hwmon import open_ina
from agent.power.load_model import open_load_model
from agent.power.nvml import open_nvml
from agent.power.pmic import open_pmic
from agent.power.rapl import open_rapl

log = logging.getLogger(__name__)

PROBE_SECONDS: Final = 0.2
# In order of coverage: board, CPU package, GPU alone.
OPENERS: Final[tuple[Callable[[Path], PowerMeter | None], ...]] = (
    open_ina,
    open_pmic,
    open_battery,
    open_rapl,
    open_amdgpu,
    open_nvml,
)


def discover(
    root: Path = Path("/"),
    *,
    estimate: tuple[float, float] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> PowerMeter | None:
    """Return the meter that covers most of this box, or None. Blocks PROBE_SECONDS per meter.

    ``estimate`` is the power in watts when idle and under full load, for a meter by CPU load if
    no sensor is found.
    """
    for open_meter in OPENERS:
        meter = open_meter(root)
        if meter is not None and _increases(meter, pause):
            log.info("power_meter_found provenance=%s", meter.provenance)
            return meter
    log.info("power_meter_absent energy=%s", "estimated" if estimate else "unmeasured")
    return open_load_model(root, *estimate) if estimate else None


def _increases(meter: PowerMeter, pause: Callable[[float], None]) -> bool:
    try:
        before = meter.read_joules()
        pause(PROBE_SECONDS)
        return meter.read_joules() > before
    except MeterLostError:
        return False
