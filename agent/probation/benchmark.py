"""Speed and energy of a candidate on this box.

Prefill and decode are timed separately after a warm-up, as llama-bench does.
"""

import itertools
import math
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agent.errors import MeterLostError
from agent.power.energy import PowerMeter
from agent.probation.completion import complete
from agent.probation.entries import run_tensors, tensor_inputs
from agent.probation.proof import Speed
from agent.supervisor import Worker
from artifact.manifest import CompletionCheck, Component, Probation, Task

# Used without a completion check. Any plain text serves, since only time is measured.
BENCHMARK_PROMPT = "The box by the road has served its neighbours for many years, and"


async def measure_speed(
    worker: Worker,
    component: Component,
    probation: Probation,
    meter: PowerMeter | None,
    clock: Callable[[], float],
) -> Speed | None:
    """Measure over ``probation.benchmark_repetitions`` runs; None if no run produced a token."""
    match component.model.task:
        case Task.TEXT_GENERATION:
            run = _generation(worker, component, probation, clock)
        case Task.EMBEDDING:
            run = _embedding(worker, clock)
        case Task.CLASSIFICATION | Task.TENSOR:
            run = _inference(worker, component, probation, clock)
    # The first run touches all weights and fills caches: not measured.
    await run()
    joules_before = read_joules(meter)
    samples = [sample for _ in range(probation.benchmark_repetitions) if (sample := await run())]
    joules = read_joules(meter) - joules_before
    rates = [sample.timed / sample.seconds for sample in samples if sample.seconds > 0]
    if not rates or not all(rates):
        return None
    metered = meter is not None and joules > 0
    return Speed(
        tokens_per_second=statistics.fmean(rates),
        tokens_per_second_deviation=statistics.stdev(rates) if len(rates) > 1 else 0.0,
        ttft_seconds=statistics.median(sample.ttft_seconds for sample in samples),
        repetitions=len(rates),
        # Includes prefill. A meter that did not advance is treated as no measurement.
        joules_per_token=joules / sum(s.produced for s in samples) if metered else None,
        energy_provenance=meter.provenance if meter and metered else None,
    )


def read_joules(meter: PowerMeter | None) -> float:
    """Return a meter's total; NaN without a meter or after its loss."""
    try:
        return meter.read_joules() if meter else math.nan
    except MeterLostError:
        return math.nan


@dataclass(frozen=True, slots=True)
class _Sample:
    """One run: tokens produced, tokens timed by ``seconds``, and TTFT."""

    produced: int
    timed: int
    seconds: float
    ttft_seconds: float


_Run = Callable[[], Awaitable[_Sample | None]]


def _generation(
    worker: Worker, component: Component, probation: Probation, clock: Callable[[], float]
) -> _Run:
    prompts = [
        check.prompt
        for check in probation.checks
        if isinstance(check, CompletionCheck) and check.slot == component.slot
    ]
    numbers = itertools.count(1)

    async def run() -> _Sample | None:
        # A new first word each time, so that the prefix cache cannot skip the prefill.
        prompt = f"{next(numbers)}. {prompts[0] if prompts else BENCHMARK_PROMPT}"
        _, usage, ttft = await complete(worker, prompt, probation.benchmark_tokens, clock)
        if usage is None or ttft is None:
            return None
        # Prefill yields the first token, decode the others.
        produced = usage.generated_tokens
        return _Sample(produced, produced - 1, usage.decode_seconds, ttft)

    return run


def _embedding(worker: Worker, clock: Callable[[], float]) -> _Run:
    async def run() -> _Sample | None:
        started = clock()
        await worker.embed([BENCHMARK_PROMPT])
        seconds = clock() - started
        return _Sample(1, 1, seconds, seconds)

    return run


def _inference(
    worker: Worker, component: Component, probation: Probation, clock: Callable[[], float]
) -> _Run:
    inputs, guessed = tensor_inputs(worker, component, probation)

    async def run() -> _Sample | None:
        started = clock()
        await run_tensors(worker, inputs, guessed)
        seconds = clock() - started
        return _Sample(1, 1, seconds, seconds)

    return run
