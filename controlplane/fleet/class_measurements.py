"""Measurements of a hardware class, reduced to one figure per variant."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Final

MAX_CLASS_MEASUREMENTS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantMeasurement:
    """Measurement of one device's probation; joules are None without a meter."""

    device: str
    model: str
    variant: str
    tokens_per_second: float
    memory_bytes: int
    joules_per_token: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMeasurement:
    """Medians over ``devices``, so that a false or disturbed measurement moves them little."""

    model: str
    variant: str
    tokens_per_second: float
    memory_bytes: int
    joules_per_token: float | None
    devices: int


def class_measurements(
    newest_first: Iterable[VariantMeasurement], models: Collection[str]
) -> tuple[ClassMeasurement, ...]:
    """Return medians of these models' variants by each device's newest; at most 256 entries."""
    found: defaultdict[tuple[str, str], dict[str, VariantMeasurement]] = defaultdict(dict)
    for one in newest_first:
        if one.model in models and one.tokens_per_second > 0:
            # Newest first, so the first one of a device stays.
            found[one.model, one.variant].setdefault(one.device, one)
    summed = [_summed(list(of_devices.values())) for of_devices in found.values()]
    summed.sort(key=lambda one: (-one.devices, one.model, one.variant))
    return tuple(summed[:MAX_CLASS_MEASUREMENTS])


def _summed(measured: list[VariantMeasurement]) -> ClassMeasurement:
    joules = [one.joules_per_token for one in measured if one.joules_per_token]
    return ClassMeasurement(
        model=measured[0].model,
        variant=measured[0].variant,
        tokens_per_second=median(one.tokens_per_second for one in measured),
        memory_bytes=int(median(one.memory_bytes for one in measured)),
        joules_per_token=median(joules) if joules else None,
        devices=len(measured),
    )
