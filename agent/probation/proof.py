"""The results of probation for one variant, as plain data."""

from dataclasses import dataclass
from typing import Literal

from artifact.window import Provenance

# Unmeasured: the box knows no inputs that the model accepts, which counts neither for nor against.
Outcome = Literal["passed", "failed", "inconclusive", "unmeasured"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Result of one check."""

    slot: str
    name: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True, slots=True)
class Speed:
    """Measured rates. For models that generate no text, one token stands for one inference.

    ``energy_provenance`` is None without a meter that measured energy.
    """

    tokens_per_second: float
    tokens_per_second_deviation: float
    ttft_seconds: float
    repetitions: int
    joules_per_token: float | None = None
    energy_provenance: Provenance | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of probation; ``joules`` is None without a meter that measured energy.

    The meter covers the whole box, including the live release.
    """

    seconds: float
    joules: float | None
    provenance: Provenance | None
    peak_memory_bytes: int

    def __str__(self) -> str:
        energy = "energy unmeasured"
        if self.joules is not None:
            energy = f"{self.joules:.1f} J ({self.provenance})"
        return f"{self.seconds:.1f} s, {energy}, peak memory {self.peak_memory_bytes >> 20} MiB"


@dataclass(frozen=True, slots=True)
class Proof:
    """The results of probation for one variant.

    The cost's peak memory is the figure that selection uses.
    """

    checks: tuple[CheckResult, ...]
    speed: Speed | None
    cost: Cost

    @property
    def outcome(self) -> Outcome:
        """The worst of all checks."""
        outcomes = {check.outcome for check in self.checks}
        for worst in ("failed", "inconclusive"):
            if worst in outcomes:
                return worst
        return "passed"

    @property
    def detail(self) -> str:
        """The first check with the worst outcome, for people; empty if all passed."""
        for check in self.checks:
            if check.outcome != "passed" and check.outcome == self.outcome:
                return f"{check.name} {check.outcome}: {check.detail}"
        return ""
