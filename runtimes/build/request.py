"""What is asked of a build, and what is told of it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from artifact.manifest import Lineage, ModelVersion, Task, Variant
from runtimes.base import Scheme
from runtimes.build.goals import Goals
from runtimes.errors import BuildError

Report = Callable[[str, str, float], None]
"""Called with the variant, what is being done to it, and how much of that is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class VariantRequest:
    """A variant to make. Without a runtime, the only source whose runtime knows the scheme."""

    name: str
    scheme: str | Scheme
    runtime: str = ""

    @property
    def how(self) -> Scheme:
        """The scheme with its options; its name alone means none."""
        return self.scheme if isinstance(self.scheme, Scheme) else Scheme(self.scheme)


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build. ``task`` and ``context_length`` are the sources' own when not given.

    With ``compare``, every variant is compared with its source on the evaluation data, and its
    memory measured. Only variants that meet the ``goals`` are kept; with ``search``, the first of
    each source that does, tried from the end that the goals name. A search without variants tries
    every scheme, with ``calibration`` where that applies.
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
    """How trying a variant ended."""

    KEPT = "kept"
    MISSED = "missed"
    REFUSED = "refused"
    FAILED = "failed"
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A variant that was tried, or left out: with the reason, and what was found of it by then."""

    name: str
    runtime: str
    scheme: str
    outcome: AttemptOutcome
    reason: str = ""
    variant: Variant | None = None


@dataclass(frozen=True, slots=True)
class BuildResult:
    """The model as it lies in the folder; ``unchanged`` when the same one was there already."""

    model: ModelVersion
    directory: Path
    unchanged: bool
    attempts: tuple[Attempt, ...] = ()


class GoalsMissedError(BuildError):
    """No variant meets the goals; ``attempts`` says what each lacked."""

    def __init__(self, attempts: tuple[Attempt, ...]) -> None:
        tried = [attempt for attempt in attempts if attempt.reason]
        last = f"; {tried[-1].name}: {tried[-1].reason}" if tried else ""
        super().__init__(
            f"none of {len(attempts)} variants meets the goals{last}",
            advice="Loosen a goal, add candidates, or give calibration data.",
        )
        self.attempts = attempts
