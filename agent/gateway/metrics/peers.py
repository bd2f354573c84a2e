"""The figures of /metrics under the names that llama.cpp's server and Triton use.

Dashboards made for those servers work unchanged. Sources:

https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md, "GET /metrics", and
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html
"""

from collections.abc import Callable, Iterator, Sequence

from agent.gateway.metrics.exposition import Family, Labels
from agent.supervisor import WorkerStats
from agent.telemetry.collector import RequestTotals

Totals = Sequence[tuple[Labels, RequestTotals]]
Workers = Sequence[tuple[Labels, WorkerStats, int]]

MICROSECONDS = 1e6


def families(totals: Totals, workers: Workers) -> Iterator[Family]:
    """Yield the metrics of both servers; ``workers`` are labels, stats, requests in progress."""
    yield from _llama_cpp(totals, workers)
    yield from _triton(totals, workers)


def _llama_cpp(totals: Totals, workers: Workers) -> Iterator[Family]:
    text = [(labels, tally) for labels, tally in totals if tally.generated_tokens]
    for name, words, value in (
        ("prompt_tokens_total", "Number of prompt tokens processed.", _prompt_tokens),
        ("prompt_seconds_total", "Prompt process time", _prefill_seconds),
        ("tokens_predicted_total", "Number of generation tokens processed.", _generated_tokens),
        ("tokens_predicted_seconds_total", "Predict process time", _decode_seconds),
    ):
        yield _counter(f"llamacpp:{name}", words, text, value)
    for name, words, count, seconds in (
        ("prompt_tokens_seconds", "Average prompt throughput in tokens/s.", *_PROMPT),
        ("predicted_tokens_seconds", "Average generation throughput in tokens/s.", *_PREDICTED),
    ):
        yield Family(
            f"llamacpp:{name}",
            "gauge",
            words,
            [("", labels, _rate(count(tally), seconds(tally))) for labels, tally in text],
        )
    yield Family(
        "llamacpp:requests_processing",
        "gauge",
        "Number of requests processing.",
        [("", labels, float(max(0, inside - stat.waiting))) for labels, stat, inside in workers],
    )
    yield Family(
        "llamacpp:requests_deferred",
        "gauge",
        "Number of requests deferred.",
        [("", labels, float(stat.waiting)) for labels, stat, _ in workers],
    )


def _triton(totals: Totals, workers: Workers) -> Iterator[Family]:
    versioned = [(_versioned(labels), tally) for labels, tally in totals]
    for name, words, value in (
        (
            "nv_inference_request_success",
            "Number of successful inference requests",
            # Refused requests have no latency; counting them would lower the mean duration.
            lambda tally: tally.latency_seconds.count - tally.errors,
        ),
        (
            "nv_inference_request_failure",
            "Number of failed inference requests",
            lambda tally: tally.errors,
        ),
        (
            "nv_inference_request_duration_us",
            "Cumulative inference request duration in microseconds",
            lambda tally: tally.latency_seconds.sum * MICROSECONDS,
        ),
        (
            "nv_inference_compute_infer_duration_us",
            "Cumulative compute inference duration in microseconds",
            lambda tally: (tally.prefill_seconds + tally.decode_seconds) * MICROSECONDS,
        ),
    ):
        yield _counter(name, words, versioned, value)
    yield Family(
        "nv_inference_pending_request_count",
        "gauge",
        "Instantaneous number of pending requests awaiting execution",
        [("", _versioned(labels), float(stat.waiting)) for labels, stat, _ in workers],
    )


def _counter(
    name: str, text: str, totals: Totals, value: Callable[[RequestTotals], float]
) -> Family:
    return Family(
        name, "counter", text, [("", labels, float(value(tally))) for labels, tally in totals]
    )


def _versioned(labels: Labels) -> Labels:
    return {**labels, "version": labels["model"].rpartition("@")[2]}


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _prompt_tokens(tally: RequestTotals) -> float:
    return tally.prompt_tokens


def _generated_tokens(tally: RequestTotals) -> float:
    return tally.generated_tokens


def _prefill_seconds(tally: RequestTotals) -> float:
    return tally.prefill_seconds


def _decode_seconds(tally: RequestTotals) -> float:
    return tally.decode_seconds


_PROMPT = (_prompt_tokens, _prefill_seconds)
_PREDICTED = (_generated_tokens, _decode_seconds)
