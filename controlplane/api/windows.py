"""Translation of telemetry windows from the wire."""

from typing import Any, Final

from flotilla.v1 import telemetry_window_pb2 as wire

from artifact.sketch import Sketch
from artifact.window import FIGURES, LABELS, SKETCHES, Energy, Provenance, Window
from controlplane.api.translate import count, moment
from controlplane.errors import InvalidInputError

MAX_BINS: Final = 4096
# One more than check_window allows, so that it refuses the texts that are cut here.
MAX_TEXT_CHARACTERS: Final = 257


def window_from_wire(window: wire.TelemetryWindow) -> Window:
    """Convert a window; controlplane.telemetry.check_window checks its values."""
    energy = None
    if window.HasField("energy"):
        provenance = (_text(getattr(window.energy, name)) for name in Provenance.__slots__)
        energy = Energy(window.energy.joules, Provenance(*provenance))
    same_names: dict[str, Any] = {
        **{name: _text(getattr(window, name)) for name in LABELS},
        **{name: _sketch(getattr(window, name)) for name in SKETCHES},
        **{name: getattr(window, name) for name in FIGURES},
    }
    return Window(
        sequence=count(window.sequence, "sequence"),
        started_at=moment(window.started_at),
        energy=energy,
        **same_names,
    )


def _sketch(sketch: wire.Sketch) -> Sketch:
    if len(sketch.bins) > MAX_BINS:
        raise InvalidInputError(
            f"the sketch has {len(sketch.bins)} bins; the maximum is {MAX_BINS}",
            advice="Update the agent.",
        )
    if not sketch.bins and not sketch.zeros:
        # An unset field: agents may omit empty sketches, and its accuracy of 0 would be invalid.
        return Sketch()
    return Sketch(dict(sketch.bins), sketch.zeros, sketch.sum, sketch.relative_accuracy)


def _text(text: str) -> str:
    # PostgreSQL cannot store NUL characters.
    return text.replace("\x00", "")[:MAX_TEXT_CHARACTERS]
