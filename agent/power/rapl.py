"""RAPL through the kernel's powercap interface: an energy counter per CPU package.

Source: Documentation/power/powercap/powercap.rst. ``energy_uj`` counts microjoules and wraps at
``max_energy_range_uj``.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agent.errors import MeterLostError
from artifact.window import Provenance

# Upper bound of a package's power: the counter's range over it is the shortest time to a wrap.
MOST_WATTS_PER_PACKAGE: Final = 1000.0
LONGEST_INTERVAL_SECONDS: Final = 60.0
PROVENANCE: Final = Provenance("rapl", "package", "counter")


@dataclass(slots=True)
class _Zone:
    path: Path
    range_microjoules: int
    last_microjoules: int

    def advance(self) -> int:
        """Return the microjoules since the last call, across at most one wrap."""
        now = int((self.path / "energy_uj").read_text())
        spent = now - self.last_microjoules
        self.last_microjoules = now
        return spent if spent >= 0 else spent + self.range_microjoules


@dataclass(slots=True)
class RaplMeter:
    """The sum of all packages."""

    zones: list[_Zone]
    provenance: Provenance = PROVENANCE
    _microjoules: int = field(init=False, default=0)

    @property
    def sample_interval_seconds(self) -> float:
        """Half of the shortest time in which a counter can wrap."""
        smallest = min(zone.range_microjoules for zone in self.zones) / 1e6
        return min(LONGEST_INTERVAL_SECONDS, smallest / MOST_WATTS_PER_PACKAGE / 2)

    def read_joules(self) -> float:
        """Return the joules since the meter was opened; MeterLostError if the counters are gone."""
        try:
            self._microjoules += sum(zone.advance() for zone in self.zones)
        except (OSError, ValueError) as error:
            raise MeterLostError(f"RAPL does not answer: {error}") from error
        return self._microjoules / 1e6


def open_rapl(root: Path) -> RaplMeter | None:
    """Open a meter over the packages whose counters this process may read."""
    zones: list[_Zone] = []
    for path in sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]*")):
        try:
            if not (path / "name").read_text().startswith("package-"):
                continue
            zones.append(
                _Zone(
                    path,
                    range_microjoules=int((path / "max_energy_range_uj").read_text()),
                    last_microjoules=int((path / "energy_uj").read_text()),
                )
            )
        except (OSError, ValueError):
            # Since CVE-2020-8694 only root may read the counter unless the owner grants access.
            continue
    return RaplMeter(zones) if zones else None
