"""Times one request and hands what it cost to the collector, however it ends."""

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
    """What telemetry calls this worker, and the composed route that led to it."""
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
    """A context around the answer to one request; ``started`` is when it came in."""

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
        self._coming_seconds = 0.0

    def came(self, tokens: int) -> None:
        """Called when so many more tokens have come."""
        self.tokens += tokens
        elapsed = self._clock() - self._started
        if self.ttft_seconds is None:
            self.ttft_seconds = elapsed
        self._coming_seconds = elapsed - self.ttft_seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        usage = self.usage
        # A caller's mistake, or one who went away, is no error of the model.
        refused = isinstance(error, ModelRefusedError | RequestRefusedError)
        ok = refused or not isinstance(error, AgentError)
        self._collector.record(
            RequestRecord(
                labels=self._labels,
                ok=ok,
                latency_seconds=None if refused else self._clock() - self._started,
                ttft_seconds=self.ttft_seconds,
                # What was known from before took no time, and would make prompts look fast.
                prompt_tokens=usage.prompt_tokens - usage.cached_prompt_tokens if usage else 0,
                generated_tokens=usage.generated_tokens if usage else self.tokens,
                prefill_seconds=usage.prefill_seconds if usage else 0.0,
                # Tokens in no time would make a model look fast whose callers hang up.
                decode_seconds=usage.decode_seconds if usage else self._coming_seconds,
                escalated=self.escalated,
            )
        )
