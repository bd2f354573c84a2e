"""The cost of one request, as the gateway records it."""

from dataclasses import dataclass

from artifact.window import Labels


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """Outcome and cost of one request.

    ``ok`` is False if the request failed through no fault of the caller; a caller that disconnects
    is ok. ``latency_seconds`` is None for refused requests, which would lower the mean latency;
    ``ttft_seconds`` is None without a first token. Prefill and decode are busy seconds of the
    engine. ``escalated``: a cascade passed the request on to its next step.
    """

    labels: Labels
    ok: bool
    latency_seconds: float | None
    ttft_seconds: float | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    escalated: bool = False
