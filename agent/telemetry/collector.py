"""Sum requests into windows, and keep running totals for /metrics."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

from agent.errors import MeterLostError
from agent.power.energy import PowerMeter
from agent.telemetry.record import RequestRecord
from artifact.sketch import Sketch
from artifact.window import Energy, Labels, Window

log = logging.getLogger(__name__)

# Totals of the least recently used labels are dropped beyond this number.
MAX_LABELS = 64


@dataclass(slots=True)
class RequestTotals:
    """Sums over requests with the same labels, under the names of the fields of Window."""

    requests: int = 0
    errors: int = 0
    escalations: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    ttft_seconds: Sketch = field(default_factory=Sketch)
    latency_seconds: Sketch = field(default_factory=Sketch)

    @property
    def busy_seconds(self) -> float:
        """Busy time of the engine; the requests' latency if the engine does not report it."""
        return self.prefill_seconds + self.decode_seconds or self.latency_seconds.sum

    def add(self, record: RequestRecord) -> None:
        """Add one request."""
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

    def figures(self) -> dict[str, Any]:
        """Return the sums by the name of their field in Window, without copying the sketches."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self)}


@dataclass(frozen=True, slots=True)
class WorkerGauge:
    """A live worker at the end of a window; ``restarts`` count since it was started."""

    labels: Labels
    peak_memory_bytes: int
    restarts: int


class Collector:
    """Collects the requests of the daemon: ``record`` per request, ``roll`` per window."""

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
        """Count one request in the open window and in the totals."""
        self._window.setdefault(record.labels, RequestTotals()).add(record)
        # Reinserted at the end, so that the first entry is the least recently used.
        total = self.totals.pop(record.labels, None) or RequestTotals()
        total.add(record)
        self.totals[record.labels] = total
        if len(self.totals) > MAX_LABELS:
            del self.totals[next(iter(self.totals))]

    def roll(self, workers: list[WorkerGauge]) -> list[Window]:
        """End the window; return one per labels that had a request or a worker restart."""
        duration = self._clock() - self._started
        joules = self._spent_joules()
        throttled_before, self._throttled = self._throttled, self._throttled_seconds()
        gauges = {gauge.labels: gauge for gauge in workers}
        # A count below the last one is of a new worker: its restarts count from the next window.
        restarts = {
            labels: max(0, gauge.restarts - self._restarts.get(labels, 0))
            for labels, gauge in gauges.items()
        }
        totals = dict(self._window)
        for labels, count in restarts.items():
            if count:
                totals.setdefault(labels, RequestTotals())
        busy = sum(total.busy_seconds for total in totals.values())
        windows = [
            Window(
                started_at=self._started_at,
                duration_seconds=duration,
                **asdict(labels),
                **total.figures(),
                peak_memory_bytes=_peak_memory(gauges, labels),
                worker_restarts=restarts.get(labels, 0),
                throttled_seconds=min(duration, self._throttled - throttled_before),
                energy=self._share(joules, total.busy_seconds, busy),
            )
            for labels, total in totals.items()
        ]
        # Workers that are gone drop out, so a new worker with the same labels counts from 0.
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

    def _share(self, joules: float, busy_seconds: float, all_busy_seconds: float) -> Energy | None:
        if self._meter is None or joules <= 0 or busy_seconds <= 0:
            return None
        provenance = self._meter.provenance
        if busy_seconds < all_busy_seconds:
            # One meter covers the whole box: dividing it by busy time is an estimate.
            provenance = replace(provenance, method="estimated")
        return Energy(joules * busy_seconds / all_busy_seconds, provenance)


def _peak_memory(gauges: dict[Labels, WorkerGauge], labels: Labels) -> int:
    # A worker is one process, whatever routes lead to it.
    gauge = gauges.get(replace(labels, route=""))
    return gauge.peak_memory_bytes if gauge else 0
