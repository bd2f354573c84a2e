"""Summaries of the fleet's telemetry."""

from datetime import datetime

from controlplane.fleet import parse_selector
from controlplane.store import devices, telemetry
from controlplane.store.database import Database
from controlplane.telemetry import Grouping, Summary, summarise


class TelemetryService:
    """Reads windows and sums them with ``controlplane.telemetry``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def summarise(
        self, *, selector: str, release: str, since: datetime | None, grouping: Grouping
    ) -> list[Summary]:
        """Summarise the devices that the selector matches; an empty release means all releases."""
        matches = parse_selector(selector).matches
        async with self._database.read() as tx:
            chosen = {one.id for one in await devices.every(tx) if matches(one.labels)}
            windows = [
                window
                async for device_id, window in telemetry.since(tx, since, release)
                if device_id in chosen
            ]
        return summarise(windows, grouping)
