"""Joules, and where they come from: no energy figure travels without its provenance."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Provenance:
    """What measured, what it covers, and how: rapl, package, counter for instance.

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
        """How often ``read_joules`` must be called at least for its total to be true."""

    def read_joules(self) -> float:
        """Joules since the meter was opened, never falling; MeterLostError."""
