"""Energy estimated from the CPU load and two figures of the owner, for boxes without a meter.

Always labelled ``estimated``: it shows trends on one box and is not comparable between boxes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.power.integral import IntegratedMeter
from artifact.window import Provenance

SAMPLE_SECONDS: Final = 5.0
# Columns of the first line of /proc/stat, Documentation/filesystems/proc.rst.
_IDLE, _IOWAIT, _COUNTED = 3, 4, 8


@dataclass(slots=True)
class LoadModel:
    """Watts between ``idle_watts`` and ``full_watts``, in proportion to the CPUs' busy time."""

    stat: Path
    idle_watts: float
    full_watts: float
    _busy: int = 0
    _all: int = 0

    def watts(self) -> float:
        """Return the mean power since the last call; OSError or ValueError without /proc/stat."""
        first = self.stat.read_text().partition("\n")[0].split()[1 : _COUNTED + 1]
        ticks = [int(column) for column in first]
        # Guest time is the last two columns and already part of user time: left out above.
        everything = sum(ticks)
        busy = everything - ticks[_IDLE] - ticks[_IOWAIT]
        passed = everything - self._all
        share = min(1.0, max(0.0, (busy - self._busy) / passed)) if passed > 0 else 0.0
        self._busy, self._all = busy, everything
        return self.idle_watts + (self.full_watts - self.idle_watts) * share


def open_load_model(
    root: Path,
    idle_watts: float,
    full_watts: float,
    clock: Callable[[], float] = time.monotonic,
) -> IntegratedMeter | None:
    """Open a meter that interpolates between the owner's two figures."""
    model = LoadModel(root / "proc/stat", idle_watts, full_watts)
    try:
        model.watts()
        provenance = Provenance("model", "board", "estimated")
        return IntegratedMeter(model.watts, provenance, clock, SAMPLE_SECONDS)
    except (OSError, ValueError, IndexError):
        return None
