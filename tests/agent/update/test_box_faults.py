"""Faults of the device are waited out, shown and counted; only long ones reject an update."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from flotilla.v1 import device_pb2

from agent.backoff import Backoff
from agent.errors import DiskFullError, DownloadError, SlowDownloadError
from agent.journal import Assignment
from agent.link.translate import receipt_to_wire
from agent.storage.download import Downloader
from agent.storage.transfer import TransferProgress
from agent.update.faults import DEVICE_FAULTS
from agent.update.machine import State
from artifact.errors import ClockSetBackError, ExpiredMetadataError, UntrustedError
from artifact.manifest import File
from artifact.trust.statements import Directive
from controlplane.services import ingest
from runtimes.fake import FakeModel, Faults
from tests.agent.box import Killed, Life, World, eventually


class Clock:
    """A verifier on a box whose clock is wrong until ``right``."""

    def __init__(self, world: World, error: UntrustedError) -> None:
        self.now = 0.0
        self.right = False
        self.tries = 0
        self._error = error
        self._directive = world.publisher.directive
        world.publisher.directive = self.directive  # type: ignore[method-assign]

    async def directive(self, assignment: Assignment) -> Directive:
        self.tries += 1
        if not self.right:
            raise self._error
        return await self._directive(assignment)

    def advance(self, seconds: float, _: float) -> float:
        """Count a wait instead of sleeping."""
        self.now += 60
        return seconds


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def patient(life: Life, clock: Clock) -> None:
    steps = replace(
        life.steps,
        clock=lambda: clock.now,
        patience_seconds=900,
        patience_backoff=lambda: Backoff(0.01, 0.01, uniform=clock.advance),
    )
    life.steps = life.engine._steps = steps


BEHIND = ClockSetBackError("this machine's clock is 3601 s behind", advice="Set the clock.")
EXPIRED = ExpiredMetadataError("timestamp is expired", advice="Sign it again.")


@pytest.mark.parametrize("error", [BEHIND, EXPIRED], ids=["clock", "metadata"])
async def test_an_update_continues_once_the_fault_has_ended(
    world: World, error: UntrustedError
) -> None:
    assignment = world.publish("1")
    clock = Clock(world, error)
    async with Life(world) as life:
        patient(life, clock)
        shown: list[str] = []
        life.listeners.append(lambda: shown.append(life.engine.status().detail))

        def correct() -> None:
            clock.right = clock.tries >= 3

        life.listeners.append(correct)
        receipt = await life.do(assignment)
        assert receipt.outcome == State.COMMITTED
        assert clock.tries == 4
        assert f"{error} {error.advice}" in shown
        assert life.engine.status().detail == ""


async def test_a_fault_that_stays_rejects_the_update_with_its_own_reason(world: World) -> None:
    assignment = world.publish("1")
    clock = Clock(world, BEHIND)
    async with Life(world) as life:
        patient(life, clock)
        receipt = await life.do(assignment)
        assert (receipt.outcome, receipt.reason) == (State.REJECTED, "clock_set_back")
        assert clock.tries == 16


async def test_a_newer_assignment_ends_the_wait(world: World) -> None:
    assignment = world.publish("1")
    clock = Clock(world, BEHIND)
    async with Life(world) as life:
        patient(life, clock)
        clock.advance = lambda seconds, _: seconds  # type: ignore[method-assign]
        life.engine.assign(assignment)
        await eventually(lambda: "behind" in life.engine.status().detail)
        clock.right = True
        receipt = await life.do(replace_generation(assignment))
        assert receipt.outcome == State.COMMITTED


async def test_metadata_that_is_not_trusted_is_rejected_at_once(world: World) -> None:
    assignment = world.publish("1")
    clock = Clock(world, UntrustedError("signed by 0/1 keys", advice="Do not install it."))
    async with Life(world) as life:
        patient(life, clock)
        receipt = await life.do(assignment)
        assert (receipt.outcome, receipt.reason) == (State.REJECTED, "untrusted")
        assert clock.tries == 1


class Fetcher:
    """A downloader that fails until ``right``; each try receives ``deliver`` bytes."""

    def __init__(self, life: Life, error: DownloadError, *, deliver: int = 0) -> None:
        self.right = False
        self.tries = 0
        self._error = error
        self._deliver = deliver
        self._real = life.steps.downloader

    async def fetch(
        self, files: list[File], progress: TransferProgress, changed: Callable[[], None]
    ) -> None:
        self.tries += 1
        progress.received_bytes += self._deliver
        if not self.right:
            raise self._error
        await self._real.fetch(files, progress, changed)


def fetching(life: Life, clock: Clock, fetcher: Fetcher) -> None:
    clock.right = True
    patient(life, clock)
    life.steps = life.engine._steps = replace(life.steps, downloader=cast("Downloader", fetcher))


FULL = DiskFullError("the disk is full", advice="Free some space.")
SLOW = SlowDownloadError("1 kB/s", advice="Look at the link.")


@pytest.mark.parametrize("error", [FULL, SLOW], ids=["disk", "link"])
async def test_a_download_continues_once_the_fault_has_ended(
    world: World, error: DownloadError
) -> None:
    assignment = world.publish("1")
    clock = Clock(world, BEHIND)
    async with Life(world) as life:
        fetcher = Fetcher(life, error)
        fetching(life, clock, fetcher)
        seen: list[dict[str, int]] = []

        def look() -> None:
            seen.append(life.engine.status().device_faults)
            fetcher.right = fetcher.tries >= 3

        life.listeners.append(look)
        receipt = await life.do(assignment)
    assert receipt.outcome == State.COMMITTED
    assert receipt.device_faults == {error.reason: 3}
    assert {error.reason: 2} in seen
    assert receipt_to_wire(receipt).fault == device_pb2.FAULT_UNSPECIFIED
    assert receipt_to_wire(receipt).device_faults == {error.reason: 3}


@pytest.mark.parametrize("error", [FULL, SLOW], ids=["disk", "link"])
async def test_a_download_that_stays_impossible_is_the_devices_fault(
    world: World, error: DownloadError
) -> None:
    assignment = world.publish("1")
    clock = Clock(world, BEHIND)
    async with Life(world) as life:
        fetcher = Fetcher(life, error)
        fetching(life, clock, fetcher)
        receipt = await life.do(assignment)
        assert "wait" not in life.engine.status().detail
    assert (receipt.outcome, receipt.reason) == (State.REJECTED, error.reason)
    assert fetcher.tries == 16
    assert receipt_to_wire(receipt).fault == device_pb2.FAULT_DEVICE


async def test_a_slow_download_that_progresses_is_not_given_up(world: World) -> None:
    """Each try brings some bytes: the quarter of an hour counts from the last of them."""
    assignment = world.publish("1")
    clock = Clock(world, BEHIND)
    async with Life(world) as life:
        fetcher = Fetcher(life, SLOW, deliver=1000)
        fetching(life, clock, fetcher)

        def look() -> None:
            fetcher.right = fetcher.tries >= 50

        life.listeners.append(look)
        receipt = await life.do(assignment)
    assert receipt.outcome == State.COMMITTED
    assert receipt.device_faults == {"download_too_slow": 50}


async def test_an_interruption_is_counted_and_is_the_devices_fault(world: World) -> None:
    assignment = world.publish("1")
    async with Life(world, die_in=State.SWITCHING) as life:
        with pytest.raises(Killed):
            await life.do(assignment)
    async with Life(world) as life:
        await life.until(State.IDLE, 1)
        receipt = life.journal.receipts()[-1]
    assert (receipt.reason, receipt.device_faults) == ("interrupted", {"interrupted": 1})
    assert receipt_to_wire(receipt).fault == device_pb2.FAULT_DEVICE


async def test_a_broken_release_is_its_own_fault(world: World) -> None:
    broken = FakeModel(faults=Faults(wrong_outputs=True))
    async with Life(world) as life:
        receipt = await life.do(world.publish("1", broken))
    assert receipt.device_faults == {}
    assert receipt_to_wire(receipt).fault == device_pb2.FAULT_RELEASE


def test_server_and_device_know_the_same_faults() -> None:
    assert DEVICE_FAULTS == ingest.DEVICE_FAULTS


def replace_generation(assignment: Assignment) -> Assignment:
    return Assignment(
        generation=assignment.generation + 1,
        release=assignment.release,
        manifest_sha256=assignment.manifest_sha256,
    )
