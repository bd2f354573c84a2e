"""The working state of one assignment in the update machine."""

from collections import Counter
from dataclasses import dataclass, field

import msgspec

from agent.journal import Assignment, CheckResult, HeldRelease, Pointers, SlotPlan, Update
from agent.selection import Decision
from agent.storage.transfer import TransferProgress
from agent.supervisor import Worker
from artifact.manifest import Component, Release, Variant, decode_release


class StepFailedError(Exception):
    """A step failed and ends the update. ``reason`` is machine-readable; the text is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(slots=True)
class UpdateJob:
    """Data that the steps of one assignment share.

    ``held`` is stored in the journal; ``workers`` live only as long as this process.
    """

    assignment: Assignment
    held: HeldRelease | None = None
    # The release has served here before: no download, and probation only checks health.
    proven: bool = False
    workers: dict[str, Worker] = field(default_factory=dict)
    progress: TransferProgress = field(default_factory=TransferProgress)
    # Received before the last restart of the agent.
    received_bytes: int = 0
    switch_seconds: float = 0.0
    reason: str = ""
    detail: str = ""
    # What the current step waits for, shown in the status; empty if it does not wait.
    waiting: str = ""
    # Faults of the device by reason, counted apart from the outcome.
    device_faults: Counter[str] = field(default_factory=Counter)
    _release: Release | None = None

    @property
    def release(self) -> Release | None:
        """The verified release; None if the assignment is empty."""
        if self.held is not None and self._release is None:
            self._release = decode_release(self.held.manifest)
        return self._release

    @property
    def components(self) -> tuple[Component, ...]:
        """Components of the release; empty if the assignment is empty."""
        return self.release.components if self.release else ()

    def plan(self, slot: str) -> SlotPlan:
        """Return the plan of a slot."""
        assert self.held is not None  # noqa: S101 - a slot is of a release
        return self.held.slots[slot]

    def set_plan(self, slot: str, plan: SlotPlan) -> None:
        """Replace the plan of a slot."""
        assert self.held is not None  # noqa: S101 - a slot is of a release
        self.held = msgspec.structs.replace(self.held, slots=self.held.slots | {slot: plan})

    def decisions(self) -> tuple[Decision, ...]:
        """Return the selection decision of every planned slot."""
        return tuple(plan.decision for plan in self.held.slots.values()) if self.held else ()

    def checks(self) -> tuple[CheckResult, ...]:
        """Return the check results of the present variant of every slot."""
        if self.held is None:
            return ()
        return tuple(
            check
            for plan in self.held.slots.values()
            for check in plan.checks.get(plan.variant, ())
        )

    def note(self, detail: str) -> None:
        """Append to the detail of the receipt."""
        self.detail = f"{self.detail}; {detail}" if self.detail else detail


def resume_job(update: Update, pointers: Pointers) -> UpdateJob:
    """Rebuild the job from the journal after a restart."""
    held = pointers.candidate
    return UpdateJob(
        update.assignment,
        held=held,
        proven=held is not None and pointers.proven(held.reference) == held,
        received_bytes=update.received_bytes,
        switch_seconds=update.switch_seconds,
        reason=update.reason,
        detail=update.detail,
        device_faults=Counter(update.device_faults),
    )


def variant_of(component: Component, name: str) -> Variant:
    """Return a component's variant by name; KeyError if there is no such variant."""
    for variant in component.model.variants:
        if variant.name == name:
            return variant
    raise KeyError(name)
