from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest

from agent.errors import MeterLostError
from agent.telemetry import Collector, Labels, RequestRecord, WorkerGauge
from agent.telemetry.collector import MAX_LABELS
from artifact.window import Provenance

CHAT = Labels("demo/fleet@1", "chat", "demo/llm@1", "q4", "llama_cpp")
DIGITS = Labels("demo/fleet@1", "digits", "demo/digits@1", "int8", "onnx")
RECORD = RequestRecord(
    labels=CHAT,
    ok=True,
    latency_seconds=2.0,
    ttft_seconds=0.5,
    prompt_tokens=7,
    generated_tokens=11,
    prefill_seconds=0.5,
    decode_seconds=1.0,
)
PROVENANCE = Provenance("rapl", "package", "counter")


@dataclass
class Clock:
    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Meter:
    joules: float = 100.0
    lost: bool = False
    provenance: Provenance = PROVENANCE
    sample_interval_seconds: float = 1.0

    def read_joules(self) -> float:
        if self.lost:
            raise MeterLostError("gone")
        return self.joules


def test_a_window_sums_what_came_in_it() -> None:
    clock, at = Clock(), datetime(2026, 1, 1, tzinfo=UTC)
    collector = Collector(clock=clock, now=lambda: at)
    collector.record(RECORD)
    collector.record(replace(RECORD, ok=False, ttft_seconds=None, generated_tokens=0))
    collector.record(replace(RECORD, labels=DIGITS))
    clock.seconds = 10
    chat, digits = collector.roll([WorkerGauge(CHAT, 123, 0)])
    assert (chat.started_at, chat.duration_seconds, chat.labels) == (at, 10, CHAT)
    assert (chat.requests, chat.errors, chat.prompt_tokens) == (2, 1, 14)
    assert (chat.generated_tokens, chat.prefill_seconds, chat.decode_seconds) == (11, 1.0, 2.0)
    assert (chat.ttft_seconds.count, chat.latency_seconds.count) == (1, 2)
    assert (chat.peak_memory_bytes, chat.energy) == (123, None)
    assert digits.labels == DIGITS
    assert collector.roll([]) == []


def test_a_window_says_how_long_the_box_was_slowed_down() -> None:
    clock, throttled = Clock(), Clock(seconds=30)
    collector = Collector(throttled_seconds=throttled, clock=clock)
    for slowed, shown in ((34, 4), (34, 0), (54, 10)):
        collector.record(RECORD)
        clock.seconds += 10
        throttled.seconds = slowed
        (window,) = collector.roll([])
        assert window.throttled_seconds == shown


def test_restarts_count_in_the_window_that_they_fell_in() -> None:
    collector = Collector()
    assert collector.roll([WorkerGauge(CHAT, 1, 0)]) == []
    (window,) = collector.roll([WorkerGauge(CHAT, 1, 2)])
    assert (window.worker_restarts, window.requests) == (2, 0)
    assert collector.roll([WorkerGauge(CHAT, 1, 2)]) == []


def test_the_only_active_model_has_the_measured_energy() -> None:
    meter = Meter()
    collector = Collector(meter)
    collector.record(RECORD)
    meter.joules += 30
    (window,) = collector.roll([])
    assert window.energy is not None
    assert (window.energy.joules, window.energy.provenance) == (30, PROVENANCE)


def test_shared_energy_is_an_estimate_by_busy_time() -> None:
    meter = Meter()
    collector = Collector(meter)
    collector.record(RECORD)
    collector.record(replace(RECORD, labels=DIGITS, decode_seconds=2.5))
    meter.joules += 30
    chat, digits = collector.roll([])
    assert chat.energy is not None
    assert digits.energy is not None
    assert chat.energy.joules == pytest.approx(10)
    assert digits.energy.joules == pytest.approx(20)
    assert chat.energy.provenance == Provenance("rapl", "package", "estimated")


def test_a_lost_meter_leaves_energy_unmeasured() -> None:
    meter = Meter()
    collector = Collector(meter)
    collector.record(RECORD)
    meter.lost = True
    (window,) = collector.roll([])
    assert window.energy is None


def test_totals_keep_the_most_recent_labels() -> None:
    collector = Collector()
    for number in range(MAX_LABELS + 5):
        collector.record(replace(RECORD, labels=replace(CHAT, release=f"demo/fleet@{number}")))
    assert len(collector.totals) == MAX_LABELS
    assert replace(CHAT, release="demo/fleet@4") not in collector.totals
    assert replace(CHAT, release="demo/fleet@5") in collector.totals
