"""Sending a text to the model for its kind: embed it, classify the embedding, take the target."""

from collections.abc import Sequence

from agent import tensors
from agent.errors import ModelRefusedError
from artifact.manifest import Pipeline, Target
from runtimes.base import Embeddings, TensorValue


def input_of(pipeline: Pipeline, embeddings: Embeddings) -> TensorValue:
    """The embedding of one text, as the classifier takes it: FP32, (1, dimensions)."""
    return TensorValue(pipeline.input, "FP32", (1, embeddings.dimensions), embeddings.vectors[0])


def target_of(pipeline: Pipeline, outputs: Sequence[TensorValue]) -> Target:
    """The target of the highest score; ModelRefusedError when there is not one score for each."""
    found = {output.name: output for output in outputs}
    if pipeline.output not in found:
        raise ModelRefusedError(
            f"the classifier of slot {pipeline.classify!r} has no output {pipeline.output!a}",
            advice=f"The release has to name one of: {', '.join(found)}.",
        )
    scores = tensors.numbers(found[pipeline.output])
    if len(scores) != len(pipeline.targets):
        raise ModelRefusedError(
            f"the classifier of slot {pipeline.classify!r} gives {len(scores)} scores for "
            f"{len(pipeline.targets)} targets",
            advice="The release has to list a target for each class.",
        )
    return pipeline.targets[max(range(len(scores)), key=scores.__getitem__)]
