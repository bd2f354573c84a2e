"""Measurements of probation on this box, and medians of the hardware class."""

from dataclasses import dataclass, field

from agent.selection.figures import FIGURE_NAMES, Figures
from artifact.manifest import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One variant on this box.

    ``model`` is publisher/name@version; ``estimated_memory_bytes`` is the manifest's prediction;
    ``joules_per_token`` is None without a meter.
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
    # Weight bytes read per token, by type, and the number of matrices, from the manifest.
    decode_bytes: dict[str, int] = field(default_factory=dict)
    matrices: int = 0

    @property
    def figures(self) -> Figures:
        """The measured figures."""
        return Figures(**{name: getattr(self, name) for name in FIGURE_NAMES})

    def is_of(self, model: str, variant: str) -> bool:
        """Return True if this measurement is of the given variant."""
        return (self.model, self.variant) == (model, variant)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """Median of the measurements of ``devices`` other boxes of the same hardware class.

    Unsigned, so it may change the ranking but never decides whether a variant fits.
    """

    tokens_per_second: float
    joules_per_token: float | None = None
    memory_bytes: int = 0
    devices: int = 1
