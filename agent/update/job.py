"""One assignment on its way through the update machine."""

from dataclasses import dataclass, field

import msgspec

from agent.journal import Assignment, CheckResult, HeldRelease, Pointers, SlotPlan, Update
from agent.selection import Decision
from agent.storage.transfer import TransferProgress
from agent.supervisor import Worker
from artifact.manifest import Component, Release, Variant, decode_release


class StepFailedError(Exception):
    """A step ended the update. ``reason`` is machine-readable, the text is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(slots=True)
class UpdateJob:
    """What the steps of one assignment hand to each other.

    ``held`` is what the journal keeps of it; ``workers`` die with the process.
    """

    assignment: Assignment
    held: HeldRelease | None = None
    # It has served here before: nothing to fetch, and health is all that is checked.
    proven: bool = False
    workers: dict[str, Worker] = field(default_factory=dict)
    progress: TransferProgress = field(default_factory=TransferProgress)
    # From past lives of this process.
    received_bytes: int = 0
    switch_seconds: float = 0.0
    reason: str = ""
    detail: str = ""
    _release: Release | None = None

    @property
    def release(self) -> Release | None:
        """The verified release; None when nothing is to be served."""
        if self.held is not None and self._release is None:
            self._release = decode_release(self.held.manifest)
        return self._release

    @property
    def components(self) -> tuple[Component, ...]:
        """Of the release; none when nothing is to be served."""
        return self.release.components if self.release else ()

    def plan(self, slot: str) -> SlotPlan:
        """What a slot is to run."""
        assert self.held is not None  # noqa: S101 - a slot is of a release
        return self.held.slots[slot]

    def set_plan(self, slot: str, plan: SlotPlan) -> None:
        """Change what a slot is to run."""
        assert self.held is not None  # noqa: S101 - a slot is of a release
        self.held = msgspec.structs.replace(self.held, slots=self.held.slots | {slot: plan})

    def decisions(self) -> tuple[Decision, ...]:
        """Of every slot that was planned."""
        return tuple(plan.decision for plan in self.held.slots.values()) if self.held else ()

    def checks(self) -> tuple[CheckResult, ...]:
        """Of the variant in hand of every slot."""
        if self.held is None:
            return ()
        return tuple(
            check
            for plan in self.held.slots.values()
            for check in plan.checks.get(plan.variant, ())
        )

    def note(self, detail: str) -> None:
        """Add to what the receipt says."""
        self.detail = f"{self.detail}; {detail}" if self.detail else detail


def resume_job(update: Update, pointers: Pointers) -> UpdateJob:
    """What a past life of this process was doing."""
    held = pointers.candidate
    return UpdateJob(
        update.assignment,
        held=held,
        proven=held is not None and pointers.proven(held.reference) == held,
        received_bytes=update.received_bytes,
        switch_seconds=update.switch_seconds,
        reason=update.reason,
        detail=update.detail,
    )


def variant_of(component: Component, name: str) -> Variant:
    """A component's variant by its name; KeyError when there is none."""
    for variant in component.model.variants:
        if variant.name == name:
            return variant
    raise KeyError(name)
