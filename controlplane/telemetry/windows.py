"""One telemetry aggregate: a device, slot, version and variant over some seconds."""

import math
from dataclasses import dataclass, field, fields
from datetime import datetime

from artifact.errors import InvalidSketchError
from artifact.sketch import Sketch, check_sketch
from controlplane.errors import InvalidInputError

MAX_NAME = 256
MAX_COUNT = 1 << 53
MAX_SECONDS = 7 * 86400.0
MAX_JOULES = 1e12
INA_CHIPS = frozenset(("ina219", "ina220", "ina226", "ina228", "ina238", "ina3221"))
SOURCES = INA_CHIPS | {"rapl", "pmic", "amdgpu", "nvml", "battery", "model"}
SCOPES = frozenset(("package", "board", "gpu", "wall"))
METHODS = frozenset(("counter", "integrated", "estimated"))


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules, and how they are known."""

    joules: float
    source: str
    scope: str
    method: str

    @property
    def provenance(self) -> str:
        """source/scope/method, for instance rapl/package/counter."""
        return f"{self.source}/{self.scope}/{self.method}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Counts, busy seconds and sketches of one window; ``energy`` None when unmeasured."""

    sequence: int
    started_at: datetime
    duration_seconds: float
    release: str
    slot: str
    model_version: str
    variant: str
    runtime: str
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    ttft_seconds: Sketch = field(default_factory=Sketch)
    latency_seconds: Sketch = field(default_factory=Sketch)
    peak_memory_bytes: int = 0
    worker_restarts: int = 0
    throttled_seconds: float = 0.0
    route: str = ""
    escalations: int = 0
    energy: Energy | None = None


def check_window(window: Window) -> None:
    """InvalidInputError when a figure or a name is out of bounds."""
    for spec in fields(window):
        value = getattr(window, spec.name)
        if isinstance(value, int):
            good = 0 <= value <= MAX_COUNT
        elif isinstance(value, float):
            good = math.isfinite(value) and 0 <= value <= MAX_SECONDS
        elif isinstance(value, str):
            good = len(value) <= MAX_NAME
        else:
            continue
        if not good:
            raise InvalidInputError(
                f"telemetry field {spec.name} has the impossible value {str(value)[:80]!r}",
                advice="Update the agent; the window is dropped.",
            )
    try:
        check_sketch(window.ttft_seconds)
        check_sketch(window.latency_seconds)
    except InvalidSketchError as error:
        raise InvalidInputError(str(error), advice=error.advice) from error
    if window.energy is not None:
        _check_energy(window.energy)


def _check_energy(energy: Energy) -> None:
    known = energy.source in SOURCES and energy.scope in SCOPES and energy.method in METHODS
    if not known or not math.isfinite(energy.joules) or not 0 <= energy.joules <= MAX_JOULES:
        raise InvalidInputError(
            f"{energy.joules!r} J of {energy.provenance[:80]!r} is no measured energy",
            advice="Leave energy out where no meter is; the window is dropped.",
        )
