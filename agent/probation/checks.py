"""The release's checks of text, tensors and embeddings: each returns an outcome and its reason."""

import math
import struct
from collections.abc import Sequence

from agent import tensors
from agent.probation.completion import complete
from agent.probation.proof import Outcome
from agent.supervisor import Worker
from artifact.manifest import (
    Check,
    CompletionCheck,
    EmbeddingCheck,
    PerplexityCheck,
    Tensor,
    TensorCheck,
)
from runtimes.base import TensorValue


async def run_check(worker: Worker, check: Check) -> tuple[Outcome, str]:
    """Run one check; errors of the worker propagate to the caller."""
    match check:
        case PerplexityCheck():
            return await _check_perplexity(worker, check)
        case CompletionCheck():
            return await _check_completion(worker, check)
        case TensorCheck():
            return await _check_tensors(worker, check)
        case EmbeddingCheck():
            return await _check_embeddings(worker, check)


async def _check_perplexity(worker: Worker, check: PerplexityCheck) -> tuple[Outcome, str]:
    score = await worker.score(check.text)
    if score.tokens < 1 or not math.isfinite(score.negative_log_likelihood):
        return "inconclusive", "the model returned no finite likelihood"
    mean = score.negative_log_likelihood / score.tokens
    perplexity = math.exp(min(mean, 700.0))
    outcome: Outcome = "passed" if perplexity <= check.maximum else "failed"
    return outcome, (
        f"perplexity {perplexity:.3f} over {score.tokens} tokens, at most {check.maximum:g} allowed"
    )


async def _check_completion(worker: Worker, check: CompletionCheck) -> tuple[Outcome, str]:
    text, usage, _ = await complete(worker, check.prompt, check.max_tokens)
    if usage is None:
        return "inconclusive", "the model returned no token count"
    if usage.generated_tokens < check.min_tokens:
        return "failed", f"{usage.generated_tokens} tokens; the minimum is {check.min_tokens}"
    if check.contains not in text:
        return "failed", f"{check.contains!a} is not in {text[:200]!a}"
    return "passed", f"{usage.generated_tokens} tokens: {text[:80]!a}"


async def _check_tensors(worker: Worker, check: TensorCheck) -> tuple[Outcome, str]:
    outputs = await worker.infer([tensors.from_manifest(tensor) for tensor in check.inputs])
    found = {output.name: output for output in outputs}
    for expected in check.outputs:
        output = found.get(expected.name)
        if output is None:
            return "failed", f"the model has no output {expected.name!a}"
        if math.prod(expected.shape) != len(expected.data):
            return "inconclusive", f"the check's own {expected.name!a} contradicts its shape"
        if tuple(output.shape) != expected.shape:
            return "failed", (
                f"{expected.name!a} has shape {list(output.shape)}, expected {list(expected.shape)}"
            )
        outcome, detail = (
            _compare_argmax(output, expected, check.min_match)
            if check.argmax_only
            else _compare_values(output, expected, check.tolerance)
        )
        if outcome != "passed":
            return outcome, detail
    return "passed", f"{len(check.outputs)} outputs match"


async def _check_embeddings(worker: Worker, check: EmbeddingCheck) -> tuple[Outcome, str]:
    found, _ = await worker.embed([one.text for one in check.expected])
    if len(found.vectors) != len(check.expected):
        return "failed", f"{len(found.vectors)} vectors for {len(check.expected)} texts"
    cosines: list[float] = []
    for number, (expected, vector) in enumerate(zip(check.expected, found.vectors, strict=True), 1):
        wanted = len(expected.vector)
        if len(vector) != 4 * wanted:
            return "failed", f"the model gives {len(vector) // 4} dimensions, expected {wanted}"
        if not any(expected.vector):
            return "inconclusive", f"the check's own vector {number} is zero"
        cosines.append(_cosine(struct.unpack(f"<{wanted}f", vector), expected.vector))
        if not math.isfinite(cosines[-1]):
            return "failed", f"vector {number} is zero, or holds NaN"
    least = min(cosines)
    outcome: Outcome = "passed" if least >= check.min_cosine else "failed"
    return outcome, (
        f"cosine of text {cosines.index(least) + 1} is {least:.4f}, at least "
        f"{check.min_cosine:g} required of {len(cosines)}"
    )


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine; NaN if a vector is zero."""
    lengths = math.hypot(*one) * math.hypot(*other)
    if not lengths:
        return math.nan
    return sum(x * y for x, y in zip(one, other, strict=True)) / lengths


def _compare_values(output: TensorValue, expected: Tensor, tolerance: float) -> tuple[Outcome, str]:
    differences = [
        abs(float(got) - want)
        for got, want in zip(tensors.numbers(output), expected.data, strict=True)
    ]
    # max() ignores NaN in some positions, so check for it explicitly.
    if any(math.isnan(difference) for difference in differences):
        return "failed", f"{expected.name!a} holds NaN"
    worst = max(differences, default=0.0)
    outcome: Outcome = "passed" if worst <= tolerance else "failed"
    return outcome, f"{expected.name!a} is off by {worst:.3g}, at most {tolerance:g} allowed"


def _compare_argmax(output: TensorValue, expected: Tensor, min_match: float) -> tuple[Outcome, str]:
    width = expected.shape[-1] if expected.shape else 1
    rows = len(expected.data) // width if width else 0
    if rows == 0:
        return "inconclusive", f"{expected.name!a} is empty"
    got = tensors.numbers(output)
    matches = sum(
        _argmax(got[row * width : (row + 1) * width])
        == _argmax(expected.data[row * width : (row + 1) * width])
        for row in range(rows)
    )
    outcome: Outcome = "passed" if matches >= min_match * rows else "failed"
    return outcome, f"{matches} of {rows} rows of {expected.name!a} agree, {min_match:.1%} required"


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
