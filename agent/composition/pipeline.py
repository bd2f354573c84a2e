"""Pipelines: embed a text, classify the embedding, and route the text by its class."""

import math
from collections.abc import Sequence

from agent import tensors
from agent.errors import WorkerFailedError
from artifact.manifest import Pipeline, Target
from runtimes.base import Embeddings, TensorValue


def classifier_input(pipeline: Pipeline, embeddings: Embeddings) -> TensorValue:
    """Return the embedding of one text as the classifier's input: FP32, (1, dimensions)."""
    return TensorValue(pipeline.input, "FP32", (1, embeddings.dimensions), embeddings.vectors[0])


def select_target(pipeline: Pipeline, outputs: Sequence[TensorValue]) -> Target:
    """Return the target with the highest score.

    Raises WorkerFailedError unless the classifier gives one finite score for each target.
    """
    found = {output.name: output for output in outputs}
    if pipeline.output not in found:
        raise WorkerFailedError(
            f"the classifier of slot {pipeline.classify!r} has no output {pipeline.output!a}",
            advice=f"Publish a release whose pipeline names one of: {', '.join(found)}.",
        )
    scores = tensors.numbers(found[pipeline.output])
    if not math.isfinite(sum(scores)):
        raise WorkerFailedError(
            f"the classifier of slot {pipeline.classify!r} gives scores that are not finite",
            advice="Deploy another variant of it.",
        )
    if len(scores) != len(pipeline.targets):
        raise WorkerFailedError(
            f"the classifier of slot {pipeline.classify!r} gives {len(scores)} scores for "
            f"{len(pipeline.targets)} targets",
            advice="Publish a release whose pipeline lists a target for each class.",
        )
    return pipeline.targets[max(range(len(scores)), key=scores.__getitem__)]
