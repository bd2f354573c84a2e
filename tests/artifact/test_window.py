"""A telemetry window arrives at the control plane as the agent measured it."""

from dataclasses import fields, replace
from datetime import UTC, datetime

from flotilla.v1 import telemetry_window_pb2 as wire

from agent.link.translate import queued_to_wire, window_to_wire
from agent.telemetry import QueuedWindow
from artifact.sketch import Sketch
from artifact.window import Energy, Provenance, Window
from controlplane.api.windows import window_from_wire
from controlplane.store.telemetry import WINDOWS

# Each field has a value of its own, so that two fields cannot be confused.
WINDOW = Window(
    sequence=7,
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    duration_seconds=10.5,
    release="demo/fleet@1",
    slot="chat",
    model_version="demo/llm@1",
    variant="q4",
    runtime="llama_cpp",
    route="assistant",
    requests=3,
    errors=1,
    escalations=2,
    prompt_tokens=10,
    generated_tokens=20,
    prefill_seconds=0.5,
    decode_seconds=1.5,
    ttft_seconds=Sketch(bins={-3: 2, 7: 1}, sum=4.5),
    latency_seconds=Sketch(zeros=1, sum=0.25),
    peak_memory_bytes=1 << 30,
    worker_restarts=4,
    throttled_seconds=2.5,
    energy=Energy(12.5, Provenance("rapl", "package", "counter")),
)


def sent(window: Window) -> Window:
    queued = QueuedWindow("boot", window.sequence, window_to_wire(window).SerializeToString())
    return window_from_wire(queued_to_wire(queued))


def test_a_window_passes_through_the_queue_and_the_wire_unchanged() -> None:
    assert sent(WINDOW) == WINDOW
    unmeasured = replace(WINDOW, energy=None)
    assert sent(unmeasured) == unmeasured


def test_a_field_of_the_window_is_in_the_message_and_in_the_table() -> None:
    names = {spec.name for spec in fields(Window)}
    assert names == {field.name for field in wire.TelemetryWindow.DESCRIPTOR.fields}
    assert names - {"energy"} <= set(WINDOWS.columns.keys())
