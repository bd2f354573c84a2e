"""Request and result of a build."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from artifact.manifest import Lineage, ModelVersion, Task, Variant
from runtimes.base import Scheme
from runtimes.build.goals import Goals
from runtimes.errors import BuildError

Report = Callable[[str, str, float], None]
"""Called with the variant, the name of the current step, and the fraction of it done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class VariantRequest:
    """A variant to make. If ``runtime`` is empty, exactly one source's runtime has the scheme."""

    name: str
    scheme: str | Scheme
    runtime: str = ""

    @property
    def how(self) -> Scheme:
        """The scheme as a record; a bare name becomes a scheme without options."""
        return self.scheme if isinstance(self.scheme, Scheme) else Scheme(self.scheme)


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """A model version to build. ``task`` and ``context_length`` default to those of the sources.

    With ``compare``, every variant is compared with its source on the evaluation data, and its
    memory is measured. Only variants that meet the ``goals`` are kept. With ``search``, candidates
    of each source are tried in the order that the goals give until one meets them. A search without
    variants tries every scheme, with ``calibration`` where that applies. Any other build without
    variants deploys each source as it was published (scheme ``source``).
    """

    sources: tuple[Path, ...]
    name: str
    version: str
    variants: tuple[VariantRequest, ...]
    out: Path
    evaluation: Path | None = None
    calibration: Path | None = None
    task: Task | None = None
    context_length: int = 0
    lineage: Lineage | None = None
    also_from: tuple[Lineage, ...] = ()
    description: str = ""
    compare: bool = False
    goals: Goals | None = None
    search: bool = False
    force: bool = False


class AttemptOutcome(StrEnum):
    """Outcome of trying a variant."""

    KEPT = "kept"
    MISSED = "missed"
    REFUSED = "refused"
    FAILED = "failed"
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A variant that was tried or skipped, the reason, and its description if it was made."""

    name: str
    runtime: str
    scheme: str
    outcome: AttemptOutcome
    reason: str = ""
    variant: Variant | None = None


@dataclass(frozen=True, slots=True)
class BuildResult:
    """The model in the folder; ``unchanged`` if the same one was there before the build."""

    model: ModelVersion
    directory: Path
    unchanged: bool
    attempts: tuple[Attempt, ...] = ()


class GoalsMissedError(BuildError):
    """No variant could be made, or none meets the goals; ``attempts`` has the reason for each."""

    def __init__(self, attempts: tuple[Attempt, ...]) -> None:
        tried = [attempt for attempt in attempts if attempt.reason]
        last = f"; {tried[-1].name}: {tried[-1].reason}" if tried else ""
        missed = any(attempt.outcome is AttemptOutcome.MISSED for attempt in attempts)
        super().__init__(
            f"none of {len(attempts)} variants {'meets the goals' if missed else 'can be made'}"
            f"{last}",
            advice="Loosen a goal, add candidates, or give calibration data."
            if missed
            else "Deploy the model as published (scheme `source`), or use other schemes.",
        )
        self.attempts = attempts
