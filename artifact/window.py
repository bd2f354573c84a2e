"""One telemetry window: figures of a device, slot, model version and variant over some seconds.

The agent measures windows and queues them as ``flotilla.v1.TelemetryWindow``; the control plane
stores and sums them. A new figure is a field here, a field of that message and a column of the
table: both sides translate the fields of ``FIGURES`` by name.
"""

from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Final

from artifact.sketch import Sketch


@dataclass(frozen=True, slots=True)
class Labels:
    """The worker that served requests, and the composed route that led to it (empty if none)."""

    release: str
    slot: str
    model_version: str
    variant: str
    runtime: str
    route: str = ""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Labels, counts, busy seconds and sketches of one window.

    ``sequence`` is 0 until the agent's queue assigns it. Prefill and decode are busy seconds of the
    engine. ``energy`` is None if unmeasured.
    """

    sequence: int = 0
    started_at: datetime
    duration_seconds: float
    release: str
    slot: str
    model_version: str
    variant: str
    runtime: str
    route: str = ""
    requests: int = 0
    errors: int = 0
    escalations: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    ttft_seconds: Sketch = field(default_factory=Sketch)
    latency_seconds: Sketch = field(default_factory=Sketch)
    peak_memory_bytes: int = 0
    worker_restarts: int = 0
    throttled_seconds: float = 0.0
    energy: Energy | None = None

    @property
    def labels(self) -> Labels:
        """The labels, which telemetry groups by."""
        return Labels(**{name: getattr(self, name) for name in LABELS})


LABELS: Final = tuple(spec.name for spec in fields(Labels))
SKETCHES: Final = tuple(spec.name for spec in fields(Window) if spec.type is Sketch)
# Numbers that every representation of a window holds under the same name.
FIGURES: Final = tuple(
    spec.name for spec in fields(Window) if spec.type in (int, float) and spec.name != "sequence"
)
