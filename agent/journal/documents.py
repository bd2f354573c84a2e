"""Documents of the journal: the current update, the three pointers, and receipts."""

from datetime import datetime

from msgspec import Struct

from agent.selection import Decision
from artifact.trust.statements import DirectorMetadata


class Assignment(Struct, frozen=True, kw_only=True):
    """The release that the director assigns to this box; an empty release serves no model.

    ``director`` is the signed metadata for it.
    """

    generation: int
    release: str
    manifest_sha256: str
    director: DirectorMetadata | None = None


class CheckResult(Struct, frozen=True, kw_only=True):
    """One probation check: passed, failed, inconclusive, or unmeasured."""

    slot: str
    name: str
    outcome: str
    detail: str


class SlotPlan(Struct, frozen=True, kw_only=True):
    """The plan of one slot of a candidate: the decision so far, and the variant being tried."""

    decision: Decision
    variant: str
    # Checks of every variant that was tried, by variant name.
    checks: dict[str, tuple[CheckResult, ...]] = {}
    # The decision's memory figures count the whole worker process. Agents before 0.2 counted the
    # model alone.
    counts_process: bool = False


class Update(Struct, frozen=True, kw_only=True):
    """The current or the last assignment; ``state`` is one of agent.update.machine."""

    assignment: Assignment
    state: str
    # How often each state was entered for this assignment, to detect loops.
    stores: dict[str, int] = {}
    reason: str = ""
    detail: str = ""
    received_bytes: int = 0
    switch_seconds: float = 0.0
    # Faults of the device during the assignment, by reason.
    device_faults: dict[str, int] = {}


class HeldRelease(Struct, frozen=True, kw_only=True):
    """A release on this box: its verified manifest and the plan of each slot."""

    reference: str
    manifest: bytes
    manifest_sha256: str
    slots: dict[str, SlotPlan] = {}


class Pointers(Struct, frozen=True, kw_only=True):
    """Releases that the box holds.

    ``current`` and ``last_good`` have been proven and have served here; ``candidate`` has not. A
    pointer is overwritten only once its successor is proven.
    """

    candidate: HeldRelease | None = None
    current: HeldRelease | None = None
    last_good: HeldRelease | None = None

    def proven(self, reference: str) -> HeldRelease | None:
        """Return the release of this reference if it has served here and is still held."""
        for held in (self.current, self.last_good):
            if held is not None and held.reference == reference:
                return held
        return None


def reference_of(held: HeldRelease | None) -> str:
    """Return the reference, empty without a release."""
    return held.reference if held else ""


class Receipt(Struct, frozen=True, kw_only=True):
    """The result of an assignment; kept until the server acknowledges it."""

    generation: int
    release: str
    outcome: str
    reason: str
    detail: str
    received_bytes: int
    switch_seconds: float
    decisions: tuple[Decision, ...]
    checks: tuple[CheckResult, ...]
    finished_at: datetime
    current_release: str
    last_good_release: str
    device_faults: dict[str, int] = {}
