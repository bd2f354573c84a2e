"""Measure one request and record it in telemetry, whatever its outcome."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from agent.errors import AgentError, ModelRefusedError
from agent.gateway.refusals import RequestRefusedError
from agent.supervisor import Worker
from agent.telemetry import Collector, Labels, RequestRecord
from runtimes.base import Usage


def labels_of(worker: Worker, route: str = "") -> Labels:
    """Return the telemetry labels of a worker and of the composed route that led to it."""
    spec = worker.spec
    return Labels(
        release=spec.release,
        slot=spec.slot,
        model_version=spec.model.reference,
        variant=spec.variant.name,
        runtime=spec.variant.runtime,
        route=route,
    )


class Recording:
    """Context manager around the answer to one request; ``started`` is its arrival by ``clock``."""

    def __init__(
        self,
        collector: Collector,
        worker: Worker,
        started: float,
        clock: Callable[[], float] = time.perf_counter,
        *,
        route: str = "",
    ) -> None:
        self._collector = collector
        self._labels = labels_of(worker, route)
        self._started = started
        self._clock = clock
        self.ttft_seconds: float | None = None
        self.usage: Usage | None = None
        self.tokens = 0
        self.escalated = False
        self._after_first_seconds = 0.0

    def count_tokens(self, tokens: int) -> None:
        """Count generated tokens as they arrive; the first call sets the TTFT."""
        self.tokens += tokens
        elapsed = self._clock() - self._started
        if self.ttft_seconds is None:
            self.ttft_seconds = elapsed
        self._after_first_seconds = elapsed - self.ttft_seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        usage = self.usage
        # Neither an invalid request nor a disconnected caller is an error of the model.
        refused = isinstance(error, ModelRefusedError | RequestRefusedError)
        ok = refused or not isinstance(error, AgentError)
        self._collector.record(
            RequestRecord(
                labels=self._labels,
                ok=ok,
                latency_seconds=None if refused else self._clock() - self._started,
                ttft_seconds=self.ttft_seconds,
                # Cached tokens took no prefill time and would inflate the prefill rate.
                prompt_tokens=usage.prompt_tokens - usage.cached_prompt_tokens if usage else 0,
                generated_tokens=usage.generated_tokens if usage else self.tokens,
                prefill_seconds=usage.prefill_seconds if usage else 0.0,
                # Without a decode time, aborted requests would inflate tokens/s.
                decode_seconds=usage.decode_seconds if usage else self._after_first_seconds,
                escalated=self.escalated,
            )
        )
