"""The document of /metrics."""

from collections.abc import Iterator

from agent.gateway.http.endpoint import Admission
from agent.gateway.metrics import peers
from agent.gateway.metrics.exposition import Family, document, summary
from agent.gateway.recording import labels_of
from agent.serving import Serving
from agent.supervisor import WorkerStats
from agent.telemetry import Collector, Labels


def exposition(
    serving: Serving, collector: Collector, admission: Admission, warnings: int
) -> bytes:
    """Return all metrics of this gateway as one document."""
    return document([*_families(serving, collector, admission), _warning_family(warnings)])


def _warning_family(warnings: int) -> Family:
    return Family(
        "flotilla_device_warnings",
        "gauge",
        "Conditions that need an operator; `flotilla-agent status` lists them.",
        [("", {}, float(warnings))],
    )


def _families(serving: Serving, collector: Collector, admission: Admission) -> Iterator[Family]:
    # A request that was refused counts as ok: its outcome is not the model's.
    totals = [(_words(labels), tally) for labels, tally in collector.totals.items()]
    yield Family(
        "flotilla_requests_total",
        "counter",
        "Requests answered, by outcome.",
        [
            sample
            for labels, tally in totals
            for sample in (
                ("", {**labels, "outcome": "ok"}, float(tally.requests - tally.errors)),
                ("", {**labels, "outcome": "error"}, float(tally.errors)),
            )
        ],
    )
    yield Family(
        "flotilla_prompt_tokens_total",
        "counter",
        "Tokens of prompts processed.",
        [("", labels, float(tally.prompt_tokens)) for labels, tally in totals],
    )
    yield Family(
        "flotilla_generated_tokens_total",
        "counter",
        "Tokens generated.",
        [("", labels, float(tally.generated_tokens)) for labels, tally in totals],
    )
    yield Family(
        "flotilla_decode_seconds_total",
        "counter",
        "Seconds that engines spent generating.",
        [("", labels, tally.decode_seconds) for labels, tally in totals],
    )
    yield Family(
        "flotilla_ttft_seconds",
        "summary",
        "Time to the first token.",
        [s for labels, tally in totals for s in summary(labels, tally.ttft_seconds)],
    )
    yield Family(
        "flotilla_request_seconds",
        "summary",
        "Time to the whole answer.",
        [s for labels, tally in totals for s in summary(labels, tally.latency_seconds)],
    )
    workers = _workers(serving)
    yield from _worker_families([(labels, stats) for labels, stats, _ in workers])
    yield from peers.families(totals, workers)
    yield Family(
        "flotilla_gateway_requests_inside",
        "gauge",
        "Requests being answered or waiting for their turn.",
        [("", {}, float(admission.inside))],
    )
    yield Family(
        "flotilla_gateway_requests_refused_total",
        "counter",
        "Requests turned away with 429.",
        [("", {}, float(admission.refused))],
    )


def _workers(serving: Serving) -> list[tuple[dict[str, str], WorkerStats, int]]:
    """Return labels, stats and requests in progress (waiting ones included) of each worker."""
    deployment = serving.deployment
    if deployment is None:
        return []
    return [
        (_words(labels_of(worker)), worker.stats(), deployment.requests_in(slot))
        for slot, worker in deployment.workers.items()
    ]


def _worker_families(stats: list[tuple[dict[str, str], WorkerStats]]) -> Iterator[Family]:
    yield Family(
        "flotilla_worker_memory_bytes",
        "gauge",
        "Resident memory of the worker process.",
        [("", labels, float(stat.memory_bytes)) for labels, stat in stats],
    )
    yield Family(
        "flotilla_worker_peak_memory_bytes",
        "gauge",
        "Peak resident memory of the worker process.",
        [("", labels, float(stat.peak_memory_bytes)) for labels, stat in stats],
    )
    yield Family(
        "flotilla_worker_restarts_total",
        "counter",
        "Times that the worker process died and was started again.",
        [("", labels, float(stat.restarts)) for labels, stat in stats],
    )
    yield Family(
        "flotilla_worker_loaded",
        "gauge",
        "1 while the model is in memory, 0 while it would be loaded for its next request.",
        [("", labels, float(stat.loaded)) for labels, stat in stats],
    )
    yield Family(
        "flotilla_worker_loads_total",
        "counter",
        "Times that the model came into memory, but for restarts.",
        [("", labels, float(stat.loads)) for labels, stat in stats],
    )


def _words(labels: Labels) -> dict[str, str]:
    return {
        "release": labels.release,
        "slot": labels.slot,
        "model": labels.model_version,
        "variant": labels.variant,
        "runtime": labels.runtime,
        # A label only where there is a route: two series of one model would otherwise collide.
        **({"route": labels.route} if labels.route else {}),
    }
