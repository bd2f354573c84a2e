"""How a device ranks the variants that fit it."""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

from artifact.manifest.fields import Bytes, Label, Record
from artifact.manifest.models import Variant

Fraction = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Tokens = Annotated[int, Meta(ge=0, le=1 << 24)]


class Objective(StrEnum):
    """What selection maximises among the variants that fit and meet the constraints."""

    TOKENS_PER_JOULE = "tokens_per_joule"
    TOKENS_PER_SECOND = "tokens_per_second"
    QUALITY = "quality"
    MEMORY = "memory"


class Exclusion(Record, frozen=True):
    """Variants that no device may take: those that match all of what is stated."""

    slot: Label | Literal[""] = ""
    variant: Label | Literal[""] = ""
    runtime: Label | Literal[""] = ""
    quantization: Label | Literal[""] = ""

    def matches(self, slot: str, variant: Variant) -> bool:
        """Whether it excludes this variant of this slot."""
        return all(
            not stated or stated == found
            for stated, found in (
                (self.slot, slot),
                (self.variant, variant.name),
                (self.runtime, variant.runtime),
                (self.quantization, variant.quantization),
            )
        )

    def __str__(self) -> str:
        return " ".join(
            f"{name} {value}" for name, value in msgspec.structs.asdict(self).items() if value
        )


class SlotPolicy(Record, frozen=True):
    """What one slot asks otherwise than the rest of the release; None: the same."""

    objective: Objective | None = None
    min_tokens_per_second: Fraction | None = None
    max_ttft_seconds: Positive | None = None
    max_memory_bytes: Bytes | None = None
    max_joules_per_token: Positive | None = None
    max_quality_loss: Fraction | None = None
    min_context_length: Tokens | None = None
    max_candidates: Annotated[int, Meta(ge=1, le=16)] | None = None


class SelectionPolicy(Record, frozen=True):
    """How a device ranks variants. Energy needs a meter; without one it ranks by tokens/s."""

    objective: Objective = Objective.TOKENS_PER_JOULE
    min_tokens_per_second: Fraction = 0
    # To the first token, of the prompt that probation measures with.
    max_ttft_seconds: Positive | None = None
    # 0: the budgets of the device and of the component alone decide.
    max_memory_bytes: Bytes = 0
    # Judged where a meter can tell, and nowhere else.
    max_joules_per_token: Positive | None = None
    # A variant whose measured quality is worse than the best one's by more than this fraction
    # is excluded.
    max_quality_loss: Fraction | None = None
    # A box that a variant does not fit with its whole context may serve it with a shorter one, but
    # no shorter than this; 0: only with the whole.
    min_context_length: Tokens = 0
    max_candidates: Annotated[int, Meta(ge=1, le=16)] = 3
    # Variant names per slot that are the only ones allowed.
    pins: Annotated[dict[Label, Label], Meta(max_length=32)] = field(default_factory=dict)
    exclude: Annotated[tuple[Exclusion, ...], Meta(max_length=64)] = ()
    slots: Annotated[dict[Label, SlotPolicy], Meta(max_length=32)] = field(default_factory=dict)

    def of(self, slot: str) -> "SelectionPolicy":
        """What holds for one slot."""
        own = msgspec.structs.asdict(self.slots.get(slot, SlotPolicy()))
        changes = {name: value for name, value in own.items() if value is not None}
        return msgspec.structs.replace(self, **changes)
