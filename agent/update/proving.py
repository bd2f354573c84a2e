"""Probation of a candidate release: prove variants slot by slot until the best one is settled."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Final

import msgspec

from agent import probation
from agent.journal import CheckResult, SlotPlan
from agent.power.energy import PowerMeter
from agent.selection import Figures, Measurement
from agent.selection.memory_prediction import MemoryModel, process_bytes
from agent.update.job import StepFailedError, UpdateJob, variant_of
from agent.update.machine import Event
from artifact.manifest import Component, Probation, Release

# For a release that has served here before: it only has to answer.
HEALTH_CHECK: Final = Probation(
    checks=(), benchmark_tokens=4, benchmark_repetitions=1, timeout_seconds=30
)

# Name under which the receipt lists what probation cost; it always passes.
COST: Final = "cost"

Keep = Callable[[Measurement], Awaitable[None]]


async def check_health(job: UpdateJob) -> None:
    """Check that every slot answers; StepFailedError otherwise."""
    for component in job.components:
        worker = job.workers[component.slot]
        proof = await probation.prove(worker, component, HEALTH_CHECK, with_entries=False)
        if proof.outcome not in {"passed", "unmeasured"}:
            raise StepFailedError("health_check_failed", f"{component.slot}: {proof.detail}")
    job.note("proven here before: loaded and checked for health only")


async def prove_slots(job: UpdateJob, meter: PowerMeter | None, keep: Keep) -> Event:
    """Prove all unproven variants; return ANOTHER if a slot's next variant is not loaded yet.

    Calls ``keep`` with every measurement. Raises StepFailedError if a slot has no usable variant
    left.
    """
    another = False
    for component in job.components:
        another |= await _prove_slot(job, component, meter, keep)
    if another:
        return Event.ANOTHER
    await _prove_routes(job)
    return Event.DONE


async def _prove_routes(job: UpdateJob) -> None:
    """Prove the composed routes with the settled variants; StepFailedError if one fails."""
    if job.release is None:
        return
    for result in await probation.prove_routes(job.release, job.workers):
        plan = job.plan(result.slot)
        # A restart in probation proves the routes again.
        others = [check for check in plan.checks[plan.variant] if check.name != result.name]
        found = CheckResult(**asdict(result))
        checks = plan.checks | {plan.variant: (*others, found)}
        job.set_plan(result.slot, msgspec.structs.replace(plan, checks=checks))
        if result.outcome in {"failed", "inconclusive"}:
            raise StepFailedError(
                f"probation_{result.outcome}", f"{result.name} {result.outcome}: {result.detail}"
            )


async def _prove_slot(
    job: UpdateJob, component: Component, meter: PowerMeter | None, keep: Keep
) -> bool:
    plan = job.plan(component.slot)
    tried = plan.variant
    # After a restart in probation the plan still knows the variants proven before it.
    if job.release is not None and not plan.decision.candidate(tried).tried:
        plan = await _measured(job, job.release, component, meter, keep)
    following = plan.decision.next_candidate()
    if following is not None:
        job.set_plan(component.slot, msgspec.structs.replace(plan, variant=following))
        return True
    decision = plan.decision.conclude()
    settled = msgspec.structs.replace(plan, decision=decision)
    if not decision.chosen_variant:
        job.set_plan(component.slot, settled)
        raise _disproven(
            component.slot, settled, ran_out_of_memory=job.workers[component.slot].ran_out_of_memory
        )
    job.set_plan(component.slot, msgspec.structs.replace(settled, variant=decision.chosen_variant))
    return decision.chosen_variant != tried


async def _measured(
    job: UpdateJob, release: Release, component: Component, meter: PowerMeter | None, keep: Keep
) -> SlotPlan:
    plan = job.plan(component.slot)
    worker = job.workers[component.slot]
    proof = await probation.prove(worker, component, release.probation, meter)
    if proof.outcome not in {"passed", "unmeasured"}:
        decision = plan.decision.with_failure(plan.variant, proof.detail)
    elif proof.speed is None:
        figures = Figures(memory_bytes=proof.cost.peak_memory_bytes)
        decision = plan.decision.with_measurement(plan.variant, figures)
    else:
        measured = _measurement(component, plan, proof, proof.speed)
        await keep(measured)
        decision = plan.decision.with_measurement(plan.variant, measured.figures)
    checks = plan.checks | {plan.variant: _results(component.slot, proof)}
    return msgspec.structs.replace(plan, decision=decision, checks=checks)


def _measurement(
    component: Component, plan: SlotPlan, proof: probation.Proof, speed: probation.Speed
) -> Measurement:
    variant = variant_of(component, plan.variant)
    shorter = plan.decision.candidate(plan.variant).context_length
    context = shorter or variant.context_length
    return Measurement(
        model=component.model.reference,
        variant=variant.name,
        task=component.model.task,
        runtime=variant.runtime,
        quantization=variant.quantization,
        size_bytes=variant.size_bytes,
        parameters=variant.parameters,
        context_length=context,
        estimated_memory_bytes=MemoryModel(variant, process_bytes(variant.runtime))
        .with_more(component.adapter_bytes)
        .bytes_at(context),
        memory_bytes=proof.cost.peak_memory_bytes,
        tokens_per_second=speed.tokens_per_second,
        ttft_seconds=speed.ttft_seconds,
        joules_per_token=speed.joules_per_token,
        decode_bytes=variant.decode_bytes,
        matrices=variant.matrices,
    )


def _disproven(slot: str, plan: SlotPlan, *, ran_out_of_memory: bool) -> StepFailedError:
    """Explain why no variant of a slot may serve; a failed check outweighs an inconclusive one.

    ``ran_out_of_memory`` refers to the worker of the last variant.
    """
    outcomes = {check.outcome for checks in plan.checks.values() for check in checks}
    inconclusive = "inconclusive" in outcomes and "failed" not in outcomes
    reasons = "; ".join(
        f"{candidate.variant}: {candidate.reason}"
        for candidate in plan.decision.candidates
        if candidate.tried
    )
    reason = "probation_inconclusive" if inconclusive else "probation_failed"
    if ran_out_of_memory:
        reason = "probation_out_of_memory"
    return StepFailedError(reason, f"slot {slot}: {reasons}")


def _results(slot: str, proof: probation.Proof) -> tuple[CheckResult, ...]:
    """Return the checks as the receipt lists them, followed by the cost of probation."""
    checks = tuple(
        CheckResult(slot=check.slot, name=check.name, outcome=check.outcome, detail=check.detail)
        for check in proof.checks
    )
    return (
        *checks,
        CheckResult(slot=slot, name=COST, outcome="passed", detail=str(proof.cost)),
    )
