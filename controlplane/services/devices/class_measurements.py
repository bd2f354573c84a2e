"""Measurements of a release's variants by the other devices of a hardware class."""

import asyncio
from collections.abc import Callable
from typing import Final

from cachetools import TTLCache

from artifact.manifest import decode_release
from controlplane.errors import NotFoundError
from controlplane.fleet.class_measurements import (
    ClassMeasurement,
    VariantMeasurement,
    class_measurements,
)
from controlplane.store import receipts, releases
from controlplane.store.database import Database

# Thousands of reconnecting devices of one class ask the same; the answer changes slowly.
FRESH_SECONDS: Final = 60.0
MAX_CACHED: Final = 1024
# The newest receipts of a class that are read.
MAX_RECEIPTS: Final = 256


class ClassMeasurementService:
    """Unsigned advice: a device lets it change the ranking of variants and nothing else."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        # By hardware class and release.
        self._cache: TTLCache[tuple[str, str], tuple[ClassMeasurement, ...]] = TTLCache(
            MAX_CACHED, FRESH_SECONDS, timer=clock
        )
        self._lock = asyncio.Lock()

    async def measurements(self, hardware_class: str, release: str) -> tuple[ClassMeasurement, ...]:
        """Return what devices of this class measured for the release's models.

        The answer may be ``FRESH_SECONDS`` old.
        """
        if not release:
            return ()
        key = (hardware_class, release)
        async with self._lock:
            found = self._cache.get(key)
            if found is None:
                found = await self._read(hardware_class, release)
                self._cache[key] = found
            return found

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
