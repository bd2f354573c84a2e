"""One telemetry aggregate, as plain data (after flotilla/v1/telemetry_window.proto)."""

from dataclasses import dataclass
from datetime import datetime

from agent.power.energy import Energy
from artifact.sketch import Sketch


@dataclass(frozen=True, slots=True)
class Labels:
    """What served a request."""

    release: str
    slot: str
    model_version: str
    variant: str
    runtime: str
    # The composed route that it came through; empty: straight to the slot.
    route: str = ""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What one request cost. ``ttft_seconds`` is None when no first token was reached.

    Nor is there a ``latency_seconds`` of what was refused: it would make the model look fast.
    ``ok`` is false for requests that failed through no fault of the caller; a caller that went
    away is ok. Prefill and decode are busy seconds of the engine.
    """

    labels: Labels
    ok: bool
    latency_seconds: float | None
    ttft_seconds: float | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    # Whether a cascade passed it on to its next step.
    escalated: bool = False


@dataclass(frozen=True, slots=True)
class TelemetryWindow:
    """A slot, model version and variant over some seconds; ``energy`` is None when unmeasured."""

    started_at: datetime
    duration_seconds: float
    labels: Labels
    requests: int
    errors: int
    prompt_tokens: int
    generated_tokens: int
    prefill_seconds: float
    decode_seconds: float
    ttft_seconds: Sketch
    latency_seconds: Sketch
    peak_memory_bytes: int = 0
    worker_restarts: int = 0
    throttled_seconds: float = 0.0
    escalations: int = 0
    energy: Energy | None = None
