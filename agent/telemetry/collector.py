"""Adds up requests into windows, and keeps running totals for /metrics."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from agent.errors import MeterLostError
from agent.power.energy import Energy, PowerMeter, Provenance
from agent.telemetry.window import Labels, RequestRecord, TelemetryWindow
from artifact.sketch import Sketch

log = logging.getLogger(__name__)

# Totals of the least recently used labels are dropped beyond so many.
MAX_LABELS = 64


@dataclass(slots=True)
class RequestTotals:
    """Sums over requests with the same labels."""

    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    escalations: int = 0
    ttft_seconds: Sketch = field(default_factory=Sketch)
    latency_seconds: Sketch = field(default_factory=Sketch)

    @property
    def busy_seconds(self) -> float:
        """How long an engine worked; requests' own time where it does not say."""
        return self.prefill_seconds + self.decode_seconds or self.latency_seconds.sum

    def add(self, record: RequestRecord) -> None:
        """Adds one request."""
        self.requests += 1
        self.errors += not record.ok
        self.escalations += record.escalated
        self.prompt_tokens += record.prompt_tokens
        self.generated_tokens += record.generated_tokens
        self.prefill_seconds += record.prefill_seconds
        self.decode_seconds += record.decode_seconds
        if record.latency_seconds is not None:
            self.latency_seconds.add(record.latency_seconds)
        if record.ttft_seconds is not None:
            self.ttft_seconds.add(record.ttft_seconds)


@dataclass(frozen=True, slots=True)
class WorkerGauge:
    """A live worker at the end of a window; ``restarts`` since it was started."""

    labels: Labels
    peak_memory_bytes: int
    restarts: int


class Collector:
    """One per daemon. ``record`` is called per request, ``roll`` at the end of each window."""

    def __init__(
        self,
        meter: PowerMeter | None = None,
        *,
        throttled_seconds: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._meter = meter
        self._throttled_seconds = throttled_seconds
        self._clock = clock
        self._now = now
        self._window: dict[Labels, RequestTotals] = {}
        self.totals: dict[Labels, RequestTotals] = {}
        self._restarts: dict[Labels, int] = {}
        self._started = clock()
        self._started_at = now()
        self._joules = meter.read_joules() if meter else 0.0
        self._throttled = throttled_seconds()

    def record(self, record: RequestRecord) -> None:
        """Counts one request in the open window and in the totals."""
        self._window.setdefault(record.labels, RequestTotals()).add(record)
        # Moved to the end, so that the first is the least recently used.
        total = self.totals.pop(record.labels, None) or RequestTotals()
        total.add(record)
        self.totals[record.labels] = total
        if len(self.totals) > MAX_LABELS:
            del self.totals[next(iter(self.totals))]

    def roll(self, workers: list[WorkerGauge]) -> list[TelemetryWindow]:
        """Ends the window: one per labels that served a request or restarted a worker."""
        duration = self._clock() - self._started
        joules = self._spent_joules()
        throttled_before, self._throttled = self._throttled, self._throttled_seconds()
        gauges = {gauge.labels: gauge for gauge in workers}
        restarts = {
            labels: max(0, gauge.restarts - self._restarts.get(labels, 0))
            for labels, gauge in gauges.items()
        }
        tallies = dict(self._window)
        for labels, count in restarts.items():
            if count:
                tallies.setdefault(labels, RequestTotals())
        busy = sum(tally.busy_seconds for tally in tallies.values())
        windows = [
            TelemetryWindow(
                started_at=self._started_at,
                duration_seconds=duration,
                labels=labels,
                requests=tally.requests,
                errors=tally.errors,
                prompt_tokens=tally.prompt_tokens,
                generated_tokens=tally.generated_tokens,
                prefill_seconds=tally.prefill_seconds,
                decode_seconds=tally.decode_seconds,
                ttft_seconds=tally.ttft_seconds,
                latency_seconds=tally.latency_seconds,
                peak_memory_bytes=_peak(gauges, labels),
                worker_restarts=restarts.get(labels, 0),
                escalations=tally.escalations,
                throttled_seconds=min(duration, self._throttled - throttled_before),
                energy=self._share(joules, tally.busy_seconds, busy),
            )
            for labels, tally in tallies.items()
        ]
        self._window = {}
        self._restarts = {labels: gauge.restarts for labels, gauge in gauges.items()}
        self._started, self._started_at = self._clock(), self._now()
        return windows

    def _spent_joules(self) -> float:
        if self._meter is None:
            return 0.0
        before = self._joules
        try:
            self._joules = self._meter.read_joules()
        except MeterLostError as error:
            log.warning("energy_unmeasured_from_now error=%s", error)
            self._meter = None
            return 0.0
        return self._joules - before

    def _share(self, joules: float, mine: float, all_busy: float) -> Energy | None:
        # One meter covers the box, so two models can only share it by busy time: an estimate.
        if self._meter is None or joules <= 0 or mine <= 0:
            return None
        provenance = self._meter.provenance
        if mine < all_busy:
            provenance = Provenance(provenance.source, provenance.scope, "estimated")
        return Energy(joules * mine / all_busy, provenance)


def _peak(gauges: dict[Labels, WorkerGauge], labels: Labels) -> int:
    """Of the worker behind these labels, whatever the route to it."""
    gauge = gauges.get(replace(labels, route=""))
    return gauge.peak_memory_bytes if gauge else 0
