"""What many windows say together: rates, merged quantiles, energy with its provenance."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from artifact.sketch import Sketch
from controlplane.telemetry.windows import Window


class Grouping(StrEnum):
    """What a row of the summary is about."""

    DEVICE = "device"
    VARIANT = "variant"
    HARDWARE_CLASS = "hardware-class"
    ROUTE = "route"


@dataclass(frozen=True, slots=True)
class DeviceWindow:
    """A window, and whose it is."""

    device: str
    hardware_class: str
    window: Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One row. Optional figures are None where nothing was measured.

    ``tokens_per_second`` is of decoding: the first token of each answer falls out of its prompt.
    ``escalations`` counts requests that a cascade passed on. Energy of different provenance
    does not add up: such a row keeps no figure, and ``energy_provenance`` names them all.
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


Key = tuple[str, str, str, str, str, str]


@dataclass(slots=True)
class _Sum:
    devices: set[str] = field(default_factory=set)
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    decode_seconds: float = 0.0
    busy_seconds: float = 0.0
    escalations: int = 0
    ttft: Sketch = field(default_factory=Sketch)
    latency: Sketch = field(default_factory=Sketch)
    peak_memory_bytes: int = 0
    # Joules and the tokens that they paid for, by provenance.
    energy: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, device: str, window: Window) -> None:
        self.devices.add(device)
        self.requests += window.requests
        self.errors += window.errors
        self.prompt_tokens += window.prompt_tokens
        self.generated_tokens += window.generated_tokens
        self.decode_seconds += window.decode_seconds
        self.busy_seconds += window.prefill_seconds + window.decode_seconds
        self.escalations += window.escalations
        self.ttft = self.ttft.merge(window.ttft_seconds)
        self.latency = self.latency.merge(window.latency_seconds)
        self.peak_memory_bytes = max(self.peak_memory_bytes, window.peak_memory_bytes)
        if window.energy is not None:
            joules, tokens = self.energy.get(window.energy.provenance, (0.0, 0))
            self.energy[window.energy.provenance] = (
                joules + window.energy.joules,
                tokens + window.generated_tokens,
            )

    def row(self, key: Key) -> Summary:
        group, release, slot, model_version, variant, runtime = key
        joules, tokens_per_joule = self._energy()
        decoded = self.generated_tokens - self.ttft.count
        timed = decoded > 0 and self.decode_seconds > 0
        return Summary(
            group=group,
            release=release,
            slot=slot,
            model_version=model_version,
            variant=variant,
            runtime=runtime,
            devices=len(self.devices),
            requests=self.requests,
            errors=self.errors,
            prompt_tokens=self.prompt_tokens,
            generated_tokens=self.generated_tokens,
            tokens_per_second=decoded / self.decode_seconds if timed else None,
            ttft_p50_seconds=self.ttft.quantile(0.5),
            ttft_p95_seconds=self.ttft.quantile(0.95),
            latency_p50_seconds=self.latency.quantile(0.5),
            latency_p95_seconds=self.latency.quantile(0.95),
            peak_memory_bytes=self.peak_memory_bytes,
            tokens_per_joule=tokens_per_joule,
            joules=joules,
            energy_provenance=" + ".join(sorted(self.energy)),
            escalations=self.escalations,
            busy_seconds=self.busy_seconds,
        )

    def _energy(self) -> tuple[float | None, float | None]:
        if len(self.energy) != 1:
            return None, None
        ((joules, tokens),) = self.energy.values()
        return joules, tokens / joules if tokens and joules > 0 else None


def summarise(windows: Iterable[DeviceWindow], grouping: Grouping) -> list[Summary]:
    """One row per group, release, slot, model version, variant and runtime, in that order.

    By route, requests that went straight to a slot are left out.
    """
    sums: dict[Key, _Sum] = {}
    for entry in windows:
        window = entry.window
        if grouping is Grouping.ROUTE and not window.route:
            continue
        key = (
            _group(entry, grouping),
            window.release,
            window.slot,
            window.model_version,
            window.variant,
            window.runtime,
        )
        sums.setdefault(key, _Sum()).add(entry.device, window)
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
