"""Finds a meter that really moves: sensors that are there but stand still measure nothing."""

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
# What covers most of the box comes first: board, then CPU package, then GPU alone.
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
    guess: tuple[float, float] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> PowerMeter | None:
    """The meter that covers most of this box, or None. Blocks for ``PROBE_SECONDS`` per meter.

    ``guess``: watts idle and under full load, for an estimate where nothing measures.
    """
    for open_meter in OPENERS:
        meter = open_meter(root)
        if meter is not None and _moves(meter, pause):
            log.info("power_meter_found provenance=%s", meter.provenance)
            return meter
    log.info("power_meter_absent energy=%s", "estimated" if guess else "unmeasured")
    return open_load_model(root, *guess) if guess else None


def _moves(meter: PowerMeter, pause: Callable[[float], None]) -> bool:
    try:
        before = meter.read_joules()
        pause(PROBE_SECONDS)
        return meter.read_joules() > before
    except MeterLostError:
        return False
