"""Prometheus metrics of this process."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """One registry per server, so that several may run in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter(
            "flotilla_calls",
            "RPCs that ended, by method and status code.",
            ("method", "code"),
            registry=self.registry,
        )
        self.call_seconds = Histogram(
            "flotilla_call_seconds",
            "How long unary RPCs took.",
            ("method",),
            registry=self.registry,
        )
        self.streams = Gauge(
            "flotilla_device_streams", "Devices connected to this process.", registry=self.registry
        )
        self.chunk_bytes = Counter(
            "flotilla_chunk_sent_bytes", "Chunk bytes sent to devices.", registry=self.registry
        )
        self.windows = Counter(
            "flotilla_telemetry_windows", "Telemetry windows received.", registry=self.registry
        )
        self.receipts = Counter(
            "flotilla_receipts",
            "Receipts stored, by outcome.",
            ("outcome",),
            registry=self.registry,
        )
        self.expires = Gauge(
            "flotilla_metadata_expires_timestamp_seconds",
            "When the metadata of a role, or the certificate authority, expires (Unix time).",
            ("role",),
            registry=self.registry,
        )
        self.job_failures = Counter(
            "flotilla_job_failures", "Runs of a job that failed.", ("job",), registry=self.registry
        )
