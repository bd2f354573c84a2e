"""What probation measured, kept so that the next decision starts from it."""

from dataclasses import dataclass, field

from artifact.manifest import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One variant on this box. ``estimated_memory_bytes`` is what its manifest predicted.

    ``model`` is publisher/name@version. Joules are None where no meter could tell.
    """

    model: str
    variant: str
    task: Task
    runtime: str
    quantization: str
    size_bytes: int
    parameters: int
    context_length: int
    estimated_memory_bytes: int
    memory_bytes: int
    tokens_per_second: float
    ttft_seconds: float
    joules_per_token: float | None = None
    # Weights read per token, by type, and in how many matrices, as in its manifest.
    decode_bytes: dict[str, int] = field(default_factory=dict)
    matrices: int = 0

    def is_of(self, model: str, variant: str) -> bool:
        """Whether it is about this variant."""
        return (self.model, self.variant) == (model, variant)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What other boxes of the same hardware class measured: the median of ``devices`` of them.

    Nobody signed it, so it may move a variant in the ranking, and never decides what fits.
    """

    tokens_per_second: float
    joules_per_token: float | None = None
    memory_bytes: int = 0
    devices: int = 1
