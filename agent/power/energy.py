"""The interface of power meters."""

from typing import Protocol

from artifact.window import Provenance


class PowerMeter(Protocol):
    """A running total of joules."""

    @property
    def provenance(self) -> Provenance: ...

    @property
    def sample_interval_seconds(self) -> float:
        """Longest interval between calls of ``read_joules`` for which its total stays exact."""

    def read_joules(self) -> float:
        """Return the joules since the meter was opened, never decreasing; raise MeterLostError."""
