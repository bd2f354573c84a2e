"""Prove one variant of a slot: the release's checks, its entries, then its speed and memory."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from agent.power.energy import PowerMeter
from agent.probation.benchmark import measure_speed, read_joules
from agent.probation.checks import run_check
from agent.probation.entries import entries
from agent.probation.judging import judge
from agent.probation.proof import CheckResult, Cost, Outcome, Proof, Speed
from agent.selection import rate_unit
from agent.supervisor import Worker
from artifact.manifest import Component, Probation


async def prove(
    worker: Worker,
    component: Component,
    probation: Probation,
    meter: PowerMeter | None = None,
    *,
    clock: Callable[[], float] = time.perf_counter,
    with_entries: bool = True,
) -> Proof:
    """Check and measure a candidate within ``probation.timeout_seconds``.

    Errors of the worker become outcomes. ``with_entries`` also proves each entry that programs may
    call. The benchmark is a check too, named ``benchmark``, and is
    inconclusive without figures.
    """
    deadline = asyncio.get_running_loop().time() + probation.timeout_seconds
    results: list[CheckResult] = []
    began, joules = clock(), read_joules(meter)

    async def add(name: str, step: Awaitable[tuple[Outcome, str]]) -> None:
        remaining = deadline - asyncio.get_running_loop().time()
        outcome, detail = await judge(remaining, step)
        results.append(CheckResult(component.slot, name, outcome, detail[:500]))

    for check in probation.checks:
        if check.slot == component.slot:
            await add(check.name, run_check(worker, check))
    if with_entries:
        for name, step in entries(worker, component, probation):
            await add(name, step())
    speed: Speed | None = None

    async def measure() -> tuple[Outcome, str]:
        nonlocal speed
        speed = await measure_speed(worker, component, probation, meter, clock)
        if speed is None:
            return "inconclusive", "the model produced nothing to time"
        return "passed", f"{speed.tokens_per_second:.1f} {rate_unit(component.model.task)}"

    if not any(result.outcome in {"failed", "inconclusive"} for result in results):
        await add("benchmark", measure())
    stats = worker.stats()
    spent = read_joules(meter) - joules
    metered = meter is not None and spent > 0
    cost = Cost(
        clock() - began,
        spent if metered else None,
        meter.provenance if meter is not None and metered else None,
        stats.peak_memory_bytes,
    )
    return Proof(tuple(results), speed, cost)
