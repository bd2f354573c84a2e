"""Telemetry: sums over requests, windows, and the bounded durable queue of windows to send."""

from agent.telemetry.collector import Collector, RequestTotals, WorkerGauge
from agent.telemetry.queue import QueuedWindow, TelemetryQueue
from agent.telemetry.record import RequestRecord
from artifact.window import Labels

__all__ = [
    "Collector",
    "Labels",
    "QueuedWindow",
    "RequestRecord",
    "RequestTotals",
    "TelemetryQueue",
    "WorkerGauge",
]
