"""What the journal holds: the update in hand, the three pointers, and receipts."""

from datetime import datetime

from msgspec import Struct

from agent.selection import Decision
from artifact.trust.statements import DirectorMetadata


class Assignment(Struct, frozen=True, kw_only=True):
    """What the director wants of this box. An empty release: serve nothing.

    ``director`` says the same, signed.
    """

    generation: int
    release: str
    manifest_sha256: str
    director: DirectorMetadata | None = None


class CheckResult(Struct, frozen=True, kw_only=True):
    """One probation check: passed, failed, or inconclusive."""

    slot: str
    name: str
    outcome: str
    detail: str


class SlotPlan(Struct, frozen=True, kw_only=True):
    """What one slot of a candidate is to run: the decision so far, and the variant in hand."""

    decision: Decision
    variant: str
    # Of every variant that was tried, by its name.
    checks: dict[str, tuple[CheckResult, ...]] = {}


class Update(Struct, frozen=True, kw_only=True):
    """The assignment in hand, or the last one; ``state`` is of agent.update.machine."""

    assignment: Assignment
    state: str
    # How often each state was stored for this assignment.
    stores: dict[str, int] = {}
    reason: str = ""
    detail: str = ""
    received_bytes: int = 0
    switch_seconds: float = 0.0


class HeldRelease(Struct, frozen=True, kw_only=True):
    """A release on this box: its verified manifest and what each slot runs."""

    reference: str
    manifest: bytes
    manifest_sha256: str
    slots: dict[str, SlotPlan] = {}


class Pointers(Struct, frozen=True, kw_only=True):
    """None is overwritten before its successor is proven.

    ``current`` and ``last_good`` have been proven and have served here; ``candidate`` has not.
    """

    candidate: HeldRelease | None = None
    current: HeldRelease | None = None
    last_good: HeldRelease | None = None

    def proven(self, reference: str) -> HeldRelease | None:
        """The release of this reference, if it has served here and is still held."""
        for held in (self.current, self.last_good):
            if held is not None and held.reference == reference:
                return held
        return None

    def committed(self, held: HeldRelease | None, *, fell_back: bool) -> "Pointers":
        """``held`` is current; what served until now is what the box would fall back to.

        ``fell_back``: that was ``last_good``, as ``current`` did not load.
        """
        if held is not None and held.reference == reference_of(self.current):
            return Pointers(current=held, last_good=self.last_good)
        # Serving nothing leaves nothing better to fall back to than what already was.
        last_good = self.last_good if fell_back else self.current or self.last_good
        return Pointers(current=held, last_good=last_good)


def reference_of(held: HeldRelease | None) -> str:
    """Its reference; empty for none."""
    return held.reference if held else ""


class Receipt(Struct, frozen=True, kw_only=True):
    """What the box did with an assignment; kept until the server has it."""

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
