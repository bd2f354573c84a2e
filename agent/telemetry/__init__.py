"""Telemetry windows and the bounded, durable queue that they wait in."""

from agent.telemetry.collector import Collector, WorkerGauge
from agent.telemetry.queue import QueuedWindow, TelemetryQueue
from agent.telemetry.window import Labels, RequestRecord, TelemetryWindow
from artifact.sketch import Sketch

__all__ = [
    "Collector",
    "Labels",
    "QueuedWindow",
    "RequestRecord",
    "Sketch",
    "TelemetryQueue",
    "TelemetryWindow",
    "WorkerGauge",
]
