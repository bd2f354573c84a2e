"""Bounds of the telemetry windows that devices send."""

import math
from dataclasses import fields

from artifact.errors import InvalidSketchError
from artifact.sketch import check_sketch
from artifact.window import Energy, Window
from controlplane.errors import InvalidInputError

MAX_NAME = 256
MAX_COUNT = 1 << 53
MAX_SECONDS = 7 * 86400.0
MAX_JOULES = 1e12
INA_CHIPS = frozenset(("ina219", "ina220", "ina226", "ina228", "ina238", "ina3221"))
SOURCES = INA_CHIPS | {"rapl", "pmic", "amdgpu", "nvml", "battery", "model"}
SCOPES = frozenset(("package", "board", "gpu", "wall"))
METHODS = frozenset(("counter", "integrated", "estimated"))


def check_window(window: Window) -> None:
    """Raise InvalidInputError if a figure, name, sketch or energy is out of bounds."""
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
                f"the telemetry field {spec.name} has the impossible value {str(value)[:80]!r}",
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
    source, scope, method = (
        energy.provenance.source,
        energy.provenance.scope,
        energy.provenance.method,
    )
    if source not in SOURCES or scope not in SCOPES or method not in METHODS:
        raise InvalidInputError(
            f"the energy provenance {str(energy.provenance)[:80]!r} is unknown",
            advice="Update the agent; the window is dropped.",
        )
    if not math.isfinite(energy.joules) or not 0 <= energy.joules <= MAX_JOULES:
        raise InvalidInputError(
            f"the energy is {energy.joules!r} J; expected 0 to {MAX_JOULES:g}",
            advice="Update the agent; the window is dropped.",
        )
