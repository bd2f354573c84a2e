"""Sample a meter often enough for its total to stay exact."""

import asyncio
import logging

from agent.errors import MeterLostError
from agent.power.energy import PowerMeter

log = logging.getLogger(__name__)


async def keep_sampling(meter: PowerMeter) -> None:
    """Sample until cancelled or until the meter is lost."""
    while True:
        try:
            meter.read_joules()
        except MeterLostError as error:
            log.warning("power_meter_lost provenance=%s error=%s", meter.provenance, error)
            return
        await asyncio.sleep(meter.sample_interval_seconds)
