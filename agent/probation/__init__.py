"""Probation of a candidate: the release's checks, then speed, memory and energy on this box.

Missing data is inconclusive, never success.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from agent.errors import AgentError, ModelRefusedError, WorkerCrashedError, WorkerFailedError
from agent.power.energy import PowerMeter
from agent.probation.benchmark import measure_speed, read_joules
from agent.probation.checks import run_check
from agent.probation.proof import CheckResult, Cost, Outcome, Proof, Speed
from agent.selection import rate_unit
from agent.supervisor import Worker
from artifact.manifest import Component, Probation

__all__ = ["CheckResult", "Cost", "Outcome", "Proof", "Speed", "prove"]


async def prove(
    worker: Worker,
    component: Component,
    probation: Probation,
    meter: PowerMeter | None = None,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Proof:
    """Check and measure a candidate within ``probation.timeout_seconds``.

    Errors of the worker become outcomes. The benchmark is a check too, named ``benchmark``, and is
    inconclusive without figures.
    """
    deadline = asyncio.get_running_loop().time() + probation.timeout_seconds
    results: list[CheckResult] = []
    began, joules = clock(), read_joules(meter)

    async def judge(name: str, step: Awaitable[tuple[Outcome, str]]) -> None:
        outcome, detail = await _within(deadline, step)
        results.append(CheckResult(component.slot, name, outcome, detail[:500]))

    for check in probation.checks:
        if check.slot == component.slot:
            await judge(check.name, run_check(worker, check))
    speed: Speed | None = None

    async def measure() -> tuple[Outcome, str]:
        nonlocal speed
        speed = await measure_speed(worker, component, probation, meter, clock)
        if speed is None:
            return "inconclusive", "the model produced nothing to time"
        return "passed", f"{speed.tokens_per_second:.1f} {rate_unit(component.model.task)}"

    if all(result.outcome == "passed" for result in results):
        await judge("benchmark", measure())
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


async def _within(deadline: float, step: Awaitable[tuple[Outcome, str]]) -> tuple[Outcome, str]:
    try:
        async with asyncio.timeout_at(deadline):
            return await step
    except TimeoutError:
        return "inconclusive", "not finished within probation's timeout_seconds"
    except ModelRefusedError as error:
        return ("inconclusive" if error.unsupported else "failed"), str(error)
    except (WorkerCrashedError, WorkerFailedError) as error:
        return "failed", str(error)
    except AgentError as error:
        return "inconclusive", str(error)
