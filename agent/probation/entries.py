"""Proof of every entry of a slot that programs may call: it has to answer, whatever it answers.

The conversation, prompt and text are fixed, so that a failure says something about the model. A
refusal that depends on them, such as a context too short for them, is "unmeasured".
"""

import math
import struct
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

from agent import tensors
from agent.errors import ModelRefusedError, PromptTooLongError
from agent.probation.proof import Outcome
from agent.supervisor import Generation, Worker
from artifact.manifest import Component, Probation, Task, TensorCheck
from runtimes.base import Sampling, TensorValue

MAX_TOKENS: Final = 4
PROMPT: Final = "The box by the road"
TEXT: Final = "The box by the road has served its neighbours for many years."
USER: Final = {"role": "user", "content": "Name a colour."}
SYSTEM: Final = {"role": "system", "content": "Answer in one word."}

Step = Callable[[], Awaitable[tuple[Outcome, str]]]


class GuessRefusedError(Exception):
    """The model refuses inputs that neither the release nor the build states."""


def entries(
    worker: Worker, component: Component, probation: Probation
) -> Iterator[tuple[str, Step]]:
    """Yield the name and the proof of each entry of a slot."""
    match component.model.task:
        case Task.TEXT_GENERATION:
            yield "chat", lambda: _prove_chat(worker)
            yield "completion", lambda: _prove_completion(worker)
            for adapter in component.adapters:
                yield (
                    f"adapter {adapter.name}",
                    lambda name=adapter.name: _prove_completion(worker, name),  # type: ignore[misc]
                )
        case Task.EMBEDDING:
            yield "embedding", lambda: _prove_embedding(worker)
        case Task.CLASSIFICATION | Task.TENSOR:
            yield "tensors", lambda: _prove_tensors(worker, component, probation)


async def _prove_chat(worker: Worker) -> tuple[Outcome, str]:
    """Answer a conversation with a system message, or without one if the template refuses it."""
    try:
        return await _generate(worker.generate(None, [SYSTEM, USER], Sampling(MAX_TOKENS)))
    except PromptTooLongError as error:
        return "unmeasured", str(error)
    except ModelRefusedError as error:
        if error.unsupported:
            raise
    outcome, detail = await _generate(worker.generate(None, [USER], Sampling(MAX_TOKENS)))
    return outcome, f"{detail}; the template refuses system messages"


async def _prove_completion(worker: Worker, adapter: str = "") -> tuple[Outcome, str]:
    sampling = Sampling(MAX_TOKENS, adapter=adapter)
    try:
        return await _generate(worker.generate(PROMPT, None, sampling))
    except PromptTooLongError as error:
        return "unmeasured", str(error)


async def _generate(generation: Generation) -> tuple[Outcome, str]:
    async for _ in generation:
        pass
    if generation.usage is None:
        return "inconclusive", "the model returned no token count"
    return "passed", f"{generation.usage.generated_tokens} tokens"


async def _prove_embedding(worker: Worker) -> tuple[Outcome, str]:
    try:
        found, _ = await worker.embed([TEXT])
    except PromptTooLongError as error:
        return "unmeasured", str(error)
    values = struct.unpack(f"<{found.dimensions}f", found.vectors[0])
    if not math.isfinite(sum(values)) or not any(values):
        return "failed", "the vector is zero or not finite"
    return "passed", f"{found.dimensions} dimensions"


async def _prove_tensors(
    worker: Worker, component: Component, probation: Probation
) -> tuple[Outcome, str]:
    outputs = await run_tensors(worker, *tensor_inputs(worker, component, probation))
    return "passed", f"{len(outputs)} outputs"


def tensor_inputs(
    worker: Worker, component: Component, probation: Probation
) -> tuple[Sequence[TensorValue], bool]:
    """Return inputs for a tensor model, and True if their free dimensions are a guess.

    The release's own inputs come first, then the shapes that the variant ran with at build.
    """
    checks = (
        check
        for check in probation.checks
        if isinstance(check, TensorCheck) and check.slot == component.slot
    )
    if check := next(checks, None):
        return [tensors.from_manifest(tensor) for tensor in check.inputs], False
    declared, _ = worker.tensors()
    shapes = worker.spec.variant.input_shapes
    guessed = any(min(spec.shape, default=0) < 0 and spec.name not in shapes for spec in declared)
    return [tensors.synthetic(spec, shapes.get(spec.name)) for spec in declared], guessed


async def run_tensors(
    worker: Worker, inputs: Sequence[TensorValue], guessed: bool
) -> list[TensorValue]:
    """Run a tensor model; GuessRefusedError if it refuses guessed inputs."""
    try:
        return await worker.infer(inputs)
    except ModelRefusedError as error:
        if guessed:
            raise GuessRefusedError(
                f"free dimensions set to 1 do not work: {error} State inputs in a tensor check."
            ) from error
        raise
