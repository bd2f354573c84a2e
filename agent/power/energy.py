"""Energy in joules, always together with its provenance."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Provenance:
    """Sensor, covered part of the box, and method of a measurement, such as rapl/package/counter.

    ``source``: rapl, ina3221, pmic, amdgpu, nvml, battery, model. ``scope``: package, board, gpu,
    wall. ``method``: counter, integrated, estimated.
    """

    source: str
    scope: str
    method: str

    def __str__(self) -> str:
        return f"{self.source}/{self.scope}/{self.method}"


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules with their provenance."""

    joules: float
    provenance: Provenance


class PowerMeter(Protocol):
    """A running total of joules."""

    @property
    def provenance(self) -> Provenance: ...

    @property
    def sample_interval_seconds(self) -> float:
        """Longest interval between calls of ``read_joules`` for which its total stays exact."""

    def read_joules(self) -> float:
        """Return the joules since the meter was opened, never decreasing; raise MeterLostError."""
