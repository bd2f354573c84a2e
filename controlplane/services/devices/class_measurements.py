"""What a hardware class knows of a release's variants, for the next device of it to start from."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from artifact.manifest import decode_release
from controlplane.errors import NotFoundError
from controlplane.fleet.class_measurements import (
    ClassMeasurement,
    VariantMeasurement,
    class_measurements,
)
from controlplane.store import receipts, releases
from controlplane.store.database import Database

# A storm of devices asks the same; what a class knows changes slowly.
FRESH_SECONDS: Final = 60.0
MAX_REMEMBERED: Final = 1024
# The newest of a class.
MAX_RECEIPTS: Final = 256


@dataclass(frozen=True, slots=True)
class _Known:
    at: float
    measurements: tuple[ClassMeasurement, ...]


class ExperienceService:
    """Advice, unsigned: devices let it move a variant in the ranking, and no more."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._remembered: dict[tuple[str, str], _Known] = {}
        self._lock = asyncio.Lock()

    async def of(self, hardware_class: str, release: str) -> tuple[ClassMeasurement, ...]:
        """What devices of this class measured of this release's models; up to a minute old."""
        if not release:
            return ()
        key = (hardware_class, release)
        async with self._lock:
            known = self._remembered.get(key)
            if known is None or self._clock() - known.at > FRESH_SECONDS:
                if len(self._remembered) >= MAX_REMEMBERED:
                    self._remembered.clear()
                known = _Known(self._clock(), await self._read(hardware_class, release))
                self._remembered[key] = known
            return known.measurements

    async def _read(self, hardware_class: str, release: str) -> tuple[ClassMeasurement, ...]:
        async with self._database.read() as tx:
            try:
                stored = await releases.get(tx, release)
            except NotFoundError:
                return ()
            found = await receipts.newest_of_class(tx, hardware_class, MAX_RECEIPTS)
        components = decode_release(stored.manifest).components
        measured = (
            VariantMeasurement(
                device=device_id,
                model=decision.model,
                variant=candidate.variant,
                tokens_per_second=candidate.measured_tokens_per_second,
                memory_bytes=candidate.measured_memory_bytes,
                joules_per_token=candidate.measured_joules_per_token,
            )
            for device_id, decisions in found
            for decision in decisions
            for candidate in decision.candidates
        )
        return class_measurements(measured, {part.model.reference for part in components})
