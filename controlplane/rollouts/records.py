"""A rollout as the core sees it. Immutable: every change is a new value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from controlplane.rollouts.gates import Counts, Verdict
from controlplane.rollouts.machine import MemberState, RolloutState, WaveState
from controlplane.rollouts.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A device in a rollout.

    ``generation`` is its latest assignment by this rollout (0 before any), to which ``state``,
    ``bytes_downloaded`` and ``switch_seconds`` belong. ``succeeded`` is the result of the release
    itself (None: not reported) and outlives a revert. ``sent_back`` is true once it was assigned
    ``previous_release`` again. ``retries`` counts interrupted updates that were assigned again.
    """

    device_id: str
    name: str
    wave: int
    state: MemberState = MemberState.PENDING
    succeeded: bool | None = None
    detail: str = ""
    previous_release: str = ""
    generation: int = 0
    assigned_at: datetime | None = None
    reachable_at_assignment: bool = False
    sent_back: bool = False
    bytes_downloaded: int = 0
    switch_seconds: float = 0.0
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """A wave; ``acknowledged`` counts failures that an operator accepted by resuming."""

    name: str
    state: WaveState = WaveState.PENDING
    reason: str = ""
    started_at: datetime | None = None
    soak_until: datetime | None = None
    acknowledged: int = 0
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A rollout; ``members`` is keyed by device id."""

    id: str
    release: str
    selector: str
    strategy: Strategy
    created_at: datetime
    created_by: str
    updated_at: datetime
    state: RolloutState = RolloutState.SCHEDULED
    reason: str = ""
    waves: tuple[Wave, ...] = ()
    members: Mapping[str, Member] = field(default_factory=dict)

    def of_wave(self, index: int) -> list[Member]:
        return [member for member in self.members.values() if member.wave == index]

    def counts(self, index: int, facts: "Facts") -> Counts:
        """Return a wave's denominators (targeted, reachable, reported) and results."""
        members = self.of_wave(index)
        succeeded = sum(member.succeeded is True for member in members)
        failed = sum(member.succeeded is False for member in members)
        return Counts(
            targeted=len(members),
            reachable=sum(is_reachable(facts, member.device_id) for member in members),
            reported=succeeded + failed,
            succeeded=succeeded,
            failed=failed,
            acknowledged=self.waves[index].acknowledged,
        )


@dataclass(frozen=True, slots=True)
class DeviceFact:
    """Current facts of a device. ``active`` is false if it is quarantined, banned or retired.

    ``assigned_release`` is the release of ``generation``, whichever rollout assigned it.
    """

    reachable: bool
    generation: int
    assigned_release: str = ""
    current_release: str = ""
    active: bool = True


Facts = Mapping[str, DeviceFact]


def is_reachable(facts: Facts, device_id: str) -> bool:
    fact = facts.get(device_id)
    return fact is not None and fact.active and fact.reachable
