"""Rollouts on a real database, with devices that carry out their assignments."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from artifact.device_facts import DeviceFacts
from controlplane.rollouts.commands import UpdateResult
from controlplane.services.access import Caller, Role
from controlplane.services.rollouts.driver import RolloutDriver
from controlplane.services.rollouts.steering import RolloutService
from controlplane.services.signals import Signals
from controlplane.store import devices, releases, sessions
from controlplane.store.database import Database, embedded_url, open_database
from controlplane.store.devices import Device
from controlplane.store.migrate import migrate
from controlplane.store.releases import StoredRelease
from controlplane.store.sessions import Greeting

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
OPERATOR = Caller("token:test:1", Role.OPERATOR)
OLD, NEW = "acme/assistant@1.0.0", "acme/assistant@2.0.0"
STRATEGY = """
waves: [{name: canary, count: 1, soak_seconds: 5}, {name: full, percent: 100}]
gates: {failure: {max_failures: 0}}
"""


@dataclass
class World:
    """The rollout service over one database; ``restart`` replaces its process state."""

    database: Database
    now: datetime = NOW
    signals: Signals = field(default_factory=Signals)
    driver: RolloutDriver = field(init=False)
    service: RolloutService = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def clock(self) -> datetime:
        return self.now

    def restart(self) -> None:
        self.signals = Signals()
        self.driver = RolloutDriver(self.database, self.signals, self.clock)
        self.service = RolloutService(self.database, self.signals, self.driver, self.clock)

    async def enroll(self, name: str, *, current_release: str = OLD, **labels: str) -> None:
        device = Device(
            id=f"id-{name}",
            name=name,
            labels=labels,
            enrolled_at=NOW,
            public_key=b"",
            certificate_serial=f"{name}-1",
            certificate_expires_at=NOW + timedelta(days=7),
            session="s",
            last_seen_at=NOW,
            current_release=current_release,
        )
        async with self.database.write() as tx:
            await devices.add(tx, device)

    async def publish(self, reference: str, digest: str) -> None:
        async with self.database.write() as tx:
            await releases.add(
                tx, StoredRelease(f"id-{reference}", reference, 1, b"{}", digest * 64, NOW)
            )

    async def start(self, selector: str = "site=lab", request: str = "start-1") -> str:
        view = await self.service.start(
            OPERATOR, request, release=NEW, selector=selector, strategy=STRATEGY
        )
        return view.rollout.id

    async def tick(self, seconds: float = 0) -> None:
        self.now += timedelta(seconds=seconds)
        await self.driver.tick()

    async def work(self, *, good: bool = True) -> None:
        """Let every assigned device send its receipt."""
        async with self.database.read() as tx:
            everyone = await devices.every(tx)
        for device in everyone:
            if not device.assigned_generation:
                continue
            outcome = UpdateResult(
                device.assigned_generation, good, "" if good else "broken", 9, 0.25
            )
            async with self.database.write() as tx:
                await self.driver.settle(tx, device.id, outcome, self.now)
                if good:
                    greeting = Greeting(
                        boot_id="b",
                        agent_version="1",
                        facts=DeviceFacts(),
                        hardware_class="",
                        current_release=device.assigned_release,
                        last_good_release="",
                    )
                    await sessions.greet(tx, device.id, "s", greeting, self.now)

    async def wanted(self) -> dict[str, tuple[int, str, str]]:
        async with self.database.read() as tx:
            return {
                one.name: (
                    one.assigned_generation,
                    one.assigned_release,
                    one.assigned_manifest_sha256[:1],
                )
                for one in await devices.every(tx)
            }


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database = open_database(embedded_url(tmp_path / "flotilla.db"))
    await migrate(database)
    world = World(database)
    await world.publish(OLD, "a")
    await world.publish(NEW, "b")
    for name in ("box-1", "box-2", "box-3"):
        await world.enroll(name, site="lab")
    await world.enroll("elsewhere", site="field")
    yield world
    await database.close()
