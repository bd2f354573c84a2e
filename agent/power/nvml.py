"""NVIDIA GPUs through NVML: an energy counter in millijoules since the driver was loaded.

``nvmlDeviceGetTotalEnergyConsumption`` exists since Volta; the power of older GPUs is integrated.
The package (nvidia-ml-py) is an extra and is imported only if the driver is present.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from agent.errors import MeterLostError
from agent.power.energy import PowerMeter
from agent.power.integral import IntegratedMeter
from artifact.window import Provenance

DRIVER: Final = "proc/driver/nvidia/version"
MAX_GPUS: Final = 16
SAMPLE_SECONDS: Final = 30.0
PROVENANCE: Final = Provenance("nvml", "gpu", "counter")


@dataclass(slots=True)
class NvmlMeter:
    """The sum of all GPUs' energy counters."""

    nvml: Any
    handles: list[Any]
    provenance: Provenance = PROVENANCE
    sample_interval_seconds: float = SAMPLE_SECONDS
    _first: int = field(init=False)

    def __post_init__(self) -> None:
        self._first = self._millijoules()

    def read_joules(self) -> float:
        """Return the joules since the meter was opened; MeterLostError if the driver is gone."""
        try:
            # A reloaded driver starts its counters again, below the first reading.
            return max(0, self._millijoules() - self._first) / 1000
        except self.nvml.NVMLError as error:
            raise MeterLostError(f"NVML does not answer: {error}") from error

    def _millijoules(self) -> int:
        read = self.nvml.nvmlDeviceGetTotalEnergyConsumption
        return sum(int(read(handle)) for handle in self.handles)


def open_nvml(root: Path, clock: Callable[[], float] = time.monotonic) -> PowerMeter | None:
    """Open a meter over all GPUs; None without the driver, the package or a readable GPU."""
    if not (root / DRIVER).exists():
        return None
    nvml = _package()
    return None if nvml is None else meter_over(nvml, clock)


def meter_over(nvml: Any, clock: Callable[[], float]) -> PowerMeter | None:
    """Open a meter over all GPUs of ``nvml``, the module ``pynvml`` or a test double."""
    try:
        nvml.nvmlInit()
        count = min(int(nvml.nvmlDeviceGetCount()), MAX_GPUS)
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    except nvml.NVMLError:
        return None
    if not handles:
        return None
    # Building the meter reads every counter once, which fails on GPUs before Volta.
    try:
        return NvmlMeter(nvml, handles)
    except nvml.NVMLError:
        return _integrated(nvml, handles, clock)


def _integrated(nvml: Any, handles: list[Any], clock: Callable[[], float]) -> PowerMeter | None:
    def watts() -> float:
        try:
            return sum(int(nvml.nvmlDeviceGetPowerUsage(handle)) for handle in handles) / 1000
        except nvml.NVMLError as error:
            raise OSError(str(error)) from error

    try:
        return IntegratedMeter(watts, Provenance("nvml", "gpu", "integrated"), clock)
    except (OSError, ValueError):
        return None


def _package() -> ModuleType | None:
    """Import pynvml on demand: it takes megabytes that a box without a GPU does not need."""
    try:
        return import_module("pynvml")
    except ImportError:
        return None
