"""A fleet in memory: the control plane's record of it, and simulated devices."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.rollouts.commands import UpdateResult, retries_allowed, settle
from controlplane.rollouts.plan import Plan
from controlplane.rollouts.records import DeviceFact, Member, Rollout, Wave
from controlplane.rollouts.strategy import parse_strategy
from controlplane.rollouts.tick import tick
from controlplane.rollouts.waves import TargetDevice, assign_waves

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OLD, NEW = "acme/assistant@1.0.0", "acme/assistant@2.0.0"


@dataclass
class SimulatedDevice:
    """``behaves`` is ok, bad (every update fails), silent, or shaky (interrupted once, then ok).

    ``seen`` is the generation that it has dealt with.
    """

    id: str
    hardware_class: str = "a"
    behaves: str = "ok"
    online: bool = True
    current: str = OLD
    generation: int = 1
    wanted: str = OLD
    seen: int = 1
    quarantined: bool = False


@dataclass
class Fleet:
    """One rollout over simulated devices; ``store`` is all that survives a crash."""

    devices: dict[str, SimulatedDevice]
    store: Rollout
    now: datetime = NOW
    assigned: list[tuple[str, str]] = field(default_factory=list)

    def facts(self) -> dict[str, DeviceFact]:
        return {
            one.id: DeviceFact(
                one.online, one.generation, one.wanted, one.current, not one.quarantined
            )
            for one in self.devices.values()
        }

    def plan(self) -> Plan:
        return tick(self.store, self.facts(), self.now)

    def apply(self, plan: Plan) -> None:
        """Store rollout and assignments in one step, guarded by generation, like the service."""
        for assign in plan.assignments:
            device = self.devices[assign.device_id]
            assert device.generation == assign.seen_generation
            device.generation, device.wanted = assign.generation, assign.release
            self.assigned.append((device.id, assign.release))
        self.store = plan.rollout

    def tick(self) -> Rollout:
        self.apply(self.plan())
        return self.store

    def pass_time(self, seconds: float) -> Rollout:
        self.now += timedelta(seconds=seconds)
        return self.tick()

    def work(self, only: Iterable[str] | None = None) -> None:
        """Let every device that is online carry out its assignment and send its receipt."""
        for device in self.devices.values():
            if only is not None and device.id not in set(only):
                continue
            if not device.online or device.seen == device.generation or device.behaves == "silent":
                continue
            device.seen = device.generation
            if device.behaves == "shaky":
                device.behaves = "ok"
                self.receive(
                    device.id, UpdateResult(device.seen, False, "stopped", interrupted=True)
                )
                continue
            good = device.behaves == "ok" or device.wanted == device.current
            device.current = device.wanted if good else device.current
            detail = "" if good else "probation_failed: perplexity"
            self.receive(device.id, UpdateResult(device.seen, good, detail, 7, 0.5))

    def receive(self, device_id: str, outcome: UpdateResult) -> None:
        members = dict(self.store.members)
        retries = retries_allowed(self.store.state, self.store.strategy)
        members[device_id] = settle(members[device_id], outcome, retries)
        self.store = replace(self.store, members=members)

    def finish(self, rounds: int = 50) -> Rollout:
        """Tick, work and let a second pass until the rollout no longer changes."""
        for _ in range(rounds):
            self.pass_time(1)
            self.work()
        return self.tick()

    def member(self, device_id: str) -> Member:
        return self.store.members[device_id]

    def in_wave(self, index: int) -> list[SimulatedDevice]:
        return [self.devices[member.device_id] for member in self.store.of_wave(index)]


STRATEGY = """
waves:
  - {name: canary, count: 1, soak_seconds: 5}
  - {name: full, percent: 100}
gates: {failure: {max_failures: 0}}
silent_timeout_seconds: 60
"""


def make_fleet(devices: Iterable[SimulatedDevice], strategy: str = STRATEGY) -> Fleet:
    found = {device.id: device for device in devices}
    parsed = parse_strategy(strategy)
    wave_of = assign_waves(
        "r1",
        [TargetDevice(one.id, one.hardware_class, one.online) for one in found.values()],
        parsed,
    )
    rollout = Rollout(
        id="r1",
        release=NEW,
        selector="site=lab",
        strategy=parsed,
        created_at=NOW,
        created_by="test",
        updated_at=NOW,
        waves=tuple(Wave(name=spec.name) for spec in parsed.waves),
        members={
            one.id: Member(device_id=one.id, name=one.id, wave=wave_of[one.id])
            for one in found.values()
        },
    )
    return Fleet(found, rollout)


NewFleet = Callable[..., Fleet]


def states(fleet: Fleet) -> tuple[str, ...]:
    return (fleet.store.state, *(wave.state for wave in fleet.store.waves))


@pytest.fixture
def new_fleet() -> NewFleet:
    def make(count: int = 4, strategy: str = STRATEGY, **given: object) -> Fleet:
        return make_fleet(
            (SimulatedDevice(f"d{n}", **given) for n in range(count)),  # type: ignore[arg-type]
            strategy,
        )

    return make
