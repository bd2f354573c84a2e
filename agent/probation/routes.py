"""Proof of the composed routes of a release, once each of its slots is proven."""

from typing import Final

from agent.composition import classifier_input, limit_sampling, select_target
from agent.errors import ModelRefusedError, PromptTooLongError
from agent.probation.entries import MAX_TOKENS, PROMPT
from agent.probation.judging import judge
from agent.probation.proof import CheckResult, Outcome
from agent.supervisor import Worker
from artifact.manifest import Cascade, Pipeline, Release
from runtimes.base import Sampling

ROUTE_SECONDS: Final = 60.0


async def prove_routes(release: Release, workers: dict[str, Worker]) -> list[CheckResult]:
    """Return a result for every cascade and pipeline, named ``route NAME``, at its first slot.

    A split only chooses among entries of slots, which are proven already.
    """
    results = []
    for route in release.routes:
        if route.cascade is not None:
            slot, step = route.cascade.steps[0].slot, _prove_cascade(route.cascade, workers)
        elif route.pipeline is not None:
            slot, step = route.pipeline.embed, _prove_pipeline(route.pipeline, workers)
        else:
            continue
        outcome, detail = await judge(ROUTE_SECONDS, step)
        results.append(CheckResult(slot, f"route {route.name}", outcome, detail[:500]))
    return results


async def _prove_cascade(cascade: Cascade, workers: dict[str, Worker]) -> tuple[Outcome, str]:
    """Check that every step but the last returns what the escalation decides by."""
    for target in cascade.steps[:-1]:
        sampling = limit_sampling(Sampling(MAX_TOKENS, adapter=target.adapter), cascade.escalate)
        try:
            generation = workers[target.slot].generate(PROMPT, None, sampling)
            pieces = [piece async for pieces in generation for piece in pieces]
        except PromptTooLongError as error:
            return "unmeasured", str(error)
        if sampling.logprobs and any(
            piece.logprob is None for piece in pieces if piece.token is not None
        ):
            return "failed", f"slot {target.slot} returns no log-probabilities to escalate by"
    return "passed", f"{len(cascade.steps)} steps"


async def _prove_pipeline(pipeline: Pipeline, workers: dict[str, Worker]) -> tuple[Outcome, str]:
    embeddings, _ = await workers[pipeline.embed].embed([PROMPT])
    try:
        outputs = await workers[pipeline.classify].infer([classifier_input(pipeline, embeddings)])
    except ModelRefusedError as error:
        # Every request would send a tensor of this shape.
        return "failed", f"the classifier of slot {pipeline.classify} refuses embeddings: {error}"
    target = select_target(pipeline, outputs)
    return "passed", f"leads to slot {target.slot}"
