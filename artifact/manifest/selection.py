"""Selection policy: the ranking of variants on a device."""

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
    """The figure that selection maximises among variants that fit and meet the constraints."""

    TOKENS_PER_JOULE = "tokens_per_joule"
    TOKENS_PER_SECOND = "tokens_per_second"
    QUALITY = "quality"
    MEMORY = "memory"


class Exclusion(Record, frozen=True):
    """Excludes the variants that match all stated conditions."""

    slot: Label | Literal[""] = ""
    variant: Label | Literal[""] = ""
    runtime: Label | Literal[""] = ""
    quantization: Label | Literal[""] = ""

    def matches(self, slot: str, variant: Variant) -> bool:
        """Return True if this variant of this slot is excluded."""
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
    """Deviations of one slot from the release's policy; None: no deviation."""

    objective: Objective | None = None
    min_tokens_per_second: Fraction | None = None
    max_ttft_seconds: Positive | None = None
    max_memory_bytes: Bytes | None = None
    max_joules_per_token: Positive | None = None
    max_quality_loss: Fraction | None = None
    min_context_length: Tokens | None = None
    max_candidates: Annotated[int, Meta(ge=1, le=16)] | None = None


class SelectionPolicy(Record, frozen=True):
    """The ranking of variants. Energy needs a meter; without one tokens/s is used."""

    objective: Objective = Objective.TOKENS_PER_JOULE
    min_tokens_per_second: Fraction = 0
    # For the prompt that probation measures with.
    max_ttft_seconds: Positive | None = None
    # 0: limited by the budgets of the device and of the component alone.
    max_memory_bytes: Bytes = 0
    # Judged only on devices with a meter.
    max_joules_per_token: Positive | None = None
    # Largest fraction by which a variant's measured quality may be worse than the best one's.
    max_quality_loss: Fraction | None = None
    # Shortest context that a device may serve if the whole one does not fit; 0: only the whole one.
    min_context_length: Tokens = 0
    max_candidates: Annotated[int, Meta(ge=1, le=16)] = 3
    # The only variant allowed, by slot.
    pins: Annotated[dict[Label, Label], Meta(max_length=32)] = field(default_factory=dict)
    exclude: Annotated[tuple[Exclusion, ...], Meta(max_length=64)] = ()
    slots: Annotated[dict[Label, SlotPolicy], Meta(max_length=32)] = field(default_factory=dict)

    def of(self, slot: str) -> "SelectionPolicy":
        """Return the policy of one slot."""
        own = msgspec.structs.asdict(self.slots.get(slot, SlotPolicy()))
        changes = {name: value for name, value in own.items() if value is not None}
        return msgspec.structs.replace(self, **changes)
