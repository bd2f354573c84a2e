"""Sum windows into rows: rates, merged quantiles, energy with its provenance."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Final

from artifact.sketch import Sketch
from artifact.window import FIGURES, Window


class Grouping(StrEnum):
    """The subject of a row of the summary."""

    DEVICE = "device"
    VARIANT = "variant"
    HARDWARE_CLASS = "hardware-class"
    ROUTE = "route"


@dataclass(frozen=True, slots=True)
class DeviceWindow:
    """A window with the device that sent it."""

    device: str
    hardware_class: str
    window: Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One row. Optional figures are None if unmeasured.

    ``tokens_per_second`` is the decode rate. ``escalations`` counts the requests that a cascade
    passed on. Energies of different provenance are not added: such a row has no energy figure,
    and ``energy_provenance`` lists all of them.
    """

    group: str
    release: str
    slot: str
    model_version: str
    variant: str
    runtime: str
    devices: int
    requests: int
    errors: int
    prompt_tokens: int
    generated_tokens: int
    tokens_per_second: float | None
    ttft_p50_seconds: float | None
    ttft_p95_seconds: float | None
    latency_p50_seconds: float | None
    latency_p95_seconds: float | None
    peak_memory_bytes: int
    tokens_per_joule: float | None
    joules: float | None
    energy_provenance: str
    escalations: int
    busy_seconds: float


# Group, and the labels named by _KEYS.
Key = tuple[str, tuple[str, ...]]
_KEYS: Final = ("release", "slot", "model_version", "variant", "runtime")


# Figures that a summary shows under the window's name: the sum, of peak memory the maximum.
_SHARED: Final = tuple(spec.name for spec in fields(Summary) if spec.name in FIGURES)


@dataclass(slots=True)
class _Sum:
    devices: set[str] = field(default_factory=set)
    figures: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(FIGURES, 0))
    ttft: Sketch = field(default_factory=Sketch)
    latency: Sketch = field(default_factory=Sketch)
    # Joules, and the tokens generated with them, by provenance.
    energy: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, device: str, window: Window) -> None:
        """Add one window."""
        self.devices.add(device)
        for name in FIGURES:
            combine = max if name == "peak_memory_bytes" else operator.add
            self.figures[name] = combine(self.figures[name], getattr(window, name))
        self.ttft = self.ttft.merge(window.ttft_seconds)
        self.latency = self.latency.merge(window.latency_seconds)
        if window.energy is not None:
            provenance = str(window.energy.provenance)
            joules, tokens = self.energy.get(provenance, (0.0, 0))
            self.energy[provenance] = (
                joules + window.energy.joules,
                tokens + window.generated_tokens,
            )

    def row(self, key: Key) -> Summary:
        """Return the row of these sums."""
        group, labels = key
        joules, tokens_per_joule = self._energy()
        decode_seconds: float = self.figures["decode_seconds"]
        # The first token of each answer comes from the prefill.
        decoded: int = self.figures["generated_tokens"] - self.ttft.count
        timed = decoded > 0 and decode_seconds > 0
        shared: dict[str, Any] = {name: self.figures[name] for name in _SHARED}
        shared |= zip(_KEYS, labels, strict=True)
        return Summary(
            group=group,
            **shared,
            devices=len(self.devices),
            tokens_per_second=decoded / decode_seconds if timed else None,
            ttft_p50_seconds=self.ttft.quantile(0.5),
            ttft_p95_seconds=self.ttft.quantile(0.95),
            latency_p50_seconds=self.latency.quantile(0.5),
            latency_p95_seconds=self.latency.quantile(0.95),
            tokens_per_joule=tokens_per_joule,
            joules=joules,
            energy_provenance=" + ".join(sorted(self.energy)),
            busy_seconds=self.figures["prefill_seconds"] + decode_seconds,
        )

    def _energy(self) -> tuple[float | None, float | None]:
        if len(self.energy) != 1:
            return None, None
        ((joules, tokens),) = self.energy.values()
        return joules, tokens / joules if tokens and joules > 0 else None


def summarise(windows: Iterable[DeviceWindow], grouping: Grouping) -> list[Summary]:
    """Return one row per group, release, slot, model version, variant and runtime, in that order.

    Grouped by route, requests without a composed route are left out.
    """
    sums: dict[Key, _Sum] = {}
    for entry in windows:
        window = entry.window
        if grouping is Grouping.ROUTE and not window.route:
            continue
        labels = tuple(getattr(window, name) for name in _KEYS)
        sums.setdefault((_group(entry, grouping), labels), _Sum()).add(entry.device, window)
    return [sums[key].row(key) for key in sorted(sums)]


def _group(entry: DeviceWindow, grouping: Grouping) -> str:
    match grouping:
        case Grouping.DEVICE:
            return entry.device
        case Grouping.VARIANT:
            return entry.window.variant
        case Grouping.HARDWARE_CLASS:
            return entry.hardware_class
        case Grouping.ROUTE:
            return entry.window.route
