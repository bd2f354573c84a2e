"""The names that local programs call, and how a request finds its model."""

from typing import Annotated, Literal

from msgspec import Meta

from artifact.manifest.fields import Label, Record


class Target(Record, frozen=True):
    """Where a request goes: a slot, and one of its adapters; empty: the model as it is."""

    slot: Label
    adapter: Label | Literal[""] = ""


class Share(Target, frozen=True, kw_only=True):
    """A target that gets ``weight`` of its split's whole weight in requests."""

    weight: Annotated[int, Meta(ge=1, le=1_000_000)]


class Escalation(Record, frozen=True):
    """When a cascade asks its next step: any of these is enough.

    ``max_tokens`` is how long an answer may get and still count as one; ``refusals`` are compared
    without regard to case.
    """

    below_mean_log_probability: Annotated[float, Meta(ge=-100, le=0)] | None = None
    refusals: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...], Meta(max_length=32)
    ] = ()
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None


class Cascade(Record, frozen=True):
    """Small first: each step answers only what the one before it could not."""

    steps: Annotated[tuple[Target, ...], Meta(min_length=2, max_length=8)]
    escalate: Escalation


class Pipeline(Record, frozen=True):
    """Embeds the text, classifies the embedding, and generates with the target of its class.

    ``input`` and ``output`` are the classifier's tensors: one embedding in, one score per target
    out, the highest of which wins.
    """

    embed: Label
    classify: Label
    input: Annotated[str, Meta(min_length=1, max_length=128)]
    output: Annotated[str, Meta(min_length=1, max_length=128)]
    targets: Annotated[tuple[Target, ...], Meta(min_length=2, max_length=64)]


class Route(Record, frozen=True):
    """A name that local programs call; exactly one of slot, split, cascade, pipeline."""

    name: Label
    slot: Label | Literal[""] = ""
    adapter: Label | Literal[""] = ""
    split: Annotated[tuple[Share, ...], Meta(max_length=16)] = ()
    cascade: Cascade | None = None
    pipeline: Pipeline | None = None

    def targets(self) -> tuple[Target, ...]:
        """Every place where a request to it may end up."""
        if self.cascade is not None:
            return self.cascade.steps
        if self.pipeline is not None:
            return self.pipeline.targets
        return self.split or (Target(slot=self.slot, adapter=self.adapter),)
