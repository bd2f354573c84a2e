"""Routes: the names that local programs call, and the way from a name to a model."""

from typing import Annotated, Literal

from msgspec import Meta

from artifact.manifest.fields import Label, Record


class Target(Record, frozen=True):
    """Destination of a request: a slot and one of its adapters; empty: the model without one."""

    slot: Label
    adapter: Label | Literal[""] = ""


class Share(Target, frozen=True, kw_only=True):
    """A target and its ``weight`` in the sum of its split's weights."""

    weight: Annotated[int, Meta(ge=1, le=1_000_000)]


class Escalation(Record, frozen=True):
    """Conditions under which a cascade asks its next step: any of them suffices.

    Longer answers than ``max_tokens`` escalate; ``refusals`` are compared without regard to case.
    """

    below_mean_log_probability: Annotated[float, Meta(ge=-100, le=0)] | None = None
    refusals: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...], Meta(max_length=32)
    ] = ()
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None


class Cascade(Record, frozen=True):
    """Small models first: each step answers only requests that the one before escalated."""

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
        """Return every target that a request to this route may reach."""
        if self.cascade is not None:
            return self.cascade.steps
        if self.pipeline is not None:
            return self.pipeline.targets
        return self.split or (Target(slot=self.slot, adapter=self.adapter),)
