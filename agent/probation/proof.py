"""What probation found out about one variant, as plain data."""

from dataclasses import dataclass
from typing import Literal

from artifact.window import Provenance

Outcome = Literal["passed", "failed", "inconclusive"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What became of one check."""

    slot: str
    name: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True, slots=True)
class Speed:
    """Measured rates. For models that generate no text a token is one inference.

    ``energy_provenance`` is None where the box has no meter that can tell.
    """

    tokens_per_second: float
    tokens_per_second_deviation: float
    ttft_seconds: float
    repetitions: int
    joules_per_token: float | None = None
    energy_provenance: Provenance | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What finding out took; ``joules`` is None where the box has no meter that can tell.

    The meter covers the whole box, and so also what served meanwhile.
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
    """All that probation found out about one variant.

    ``model_memory_bytes`` is the engine's own account, comparable with the manifest's
    ``memory_bytes`` (selection takes this); the cost's peak is the whole worker process.
    """

    checks: tuple[CheckResult, ...]
    speed: Speed | None
    model_memory_bytes: int
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
        """The first check that did not pass, in words; empty when all did."""
        for check in self.checks:
            if check.outcome != "passed" and check.outcome == self.outcome:
                return f"{check.name} {check.outcome}: {check.detail}"
        return ""
