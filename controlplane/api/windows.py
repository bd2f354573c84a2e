"""Telemetry windows, from the wire."""

from typing import Final

from flotilla.v1 import telemetry_window_pb2 as wire

from controlplane.api.translate import count, moment
from controlplane.errors import InvalidInputError
from controlplane.telemetry import Energy, Sketch, Window

MAX_BINS: Final = 4096
MAX_TEXT_CHARACTERS: Final = 257


def window_from_wire(window: wire.TelemetryWindow) -> Window:
    """Its figures are checked by controlplane.telemetry.check_window."""
    energy = None
    if window.HasField("energy"):
        energy = Energy(
            window.energy.joules,
            _text(window.energy.source),
            _text(window.energy.scope),
            _text(window.energy.method),
        )
    return Window(
        sequence=count(window.sequence, "sequence"),
        started_at=moment(window.started_at),
        duration_seconds=window.duration_seconds,
        release=_text(window.release),
        slot=_text(window.slot),
        model_version=_text(window.model_version),
        variant=_text(window.variant),
        runtime=_text(window.runtime),
        requests=window.requests,
        errors=window.errors,
        prompt_tokens=window.prompt_tokens,
        generated_tokens=window.generated_tokens,
        prefill_seconds=window.prefill_seconds,
        decode_seconds=window.decode_seconds,
        ttft_seconds=_sketch(window.ttft_seconds),
        latency_seconds=_sketch(window.latency_seconds),
        peak_memory_bytes=window.peak_memory_bytes,
        worker_restarts=window.worker_restarts,
        throttled_seconds=window.throttled_seconds,
        route=_text(window.route),
        escalations=window.escalations,
        energy=energy,
    )


def _sketch(sketch: wire.Sketch) -> Sketch:
    if len(sketch.bins) > MAX_BINS:
        raise InvalidInputError(
            f"a sketch of {len(sketch.bins)} bins is none", advice="Update the agent."
        )
    if not sketch.bins and not sketch.zeros:
        # An agent need not send what nothing fell into.
        return Sketch()
    return Sketch(dict(sketch.bins), sketch.zeros, sketch.sum, sketch.relative_accuracy)


def _text(text: str) -> str:
    # One more than check_window allows, so that it refuses what is cut here.
    return text.replace("\x00", "")[:MAX_TEXT_CHARACTERS]
