"""Periodic jobs survive failures; changes of the fleet share rollout ticks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from controlplane.metrics import Metrics
from controlplane.server.jobs import (
    LEAST_PAUSE_SECONDS,
    PAUSE_PER_TICK,
    TICK_SECONDS,
    PeriodicJob,
    drive_rollouts,
    run,
    schedule,
)
from controlplane.services.signals import FLEET_CHANGED, Signals


async def fail() -> None:
    raise RuntimeError("disk gone")


async def test_a_failed_run_is_counted_not_raised() -> None:
    metrics = Metrics()
    await run("sweep", fail, metrics)
    assert metrics.registry.get_sample_value("flotilla_job_failures_total", {"job": "sweep"}) == 1


async def test_a_job_runs_again_after_a_failure() -> None:
    runs = 0
    twice = asyncio.Event()

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 2:
            twice.set()
        raise RuntimeError("disk gone")

    scheduler = schedule((PeriodicJob("sweep", timedelta(milliseconds=10), work),), Metrics())
    scheduler.start()
    try:
        await asyncio.wait_for(twice.wait(), 10)
    finally:
        scheduler.shutdown(wait=False)


@dataclass
class Driven:
    """A driver whose ticks take ``tick_seconds`` and whose pauses the test ends."""

    signals: Signals = field(default_factory=Signals)
    tick_seconds: float = 0.0
    now: float = 0.0
    ticks: int = 0
    pauses: asyncio.Queue[float] = field(default_factory=asyncio.Queue)
    over: asyncio.Queue[None] = field(default_factory=asyncio.Queue)

    async def tick(self) -> None:
        self.ticks += 1
        self.now += self.tick_seconds

    async def sleep(self, seconds: float) -> None:
        self.pauses.put_nowait(seconds)
        await self.over.get()

    async def pause(self) -> float:
        """Wait for the next pause and return its length in seconds."""
        return await asyncio.wait_for(self.pauses.get(), 10)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        driver = asyncio.create_task(
            drive_rollouts(
                self.tick, self.signals, Metrics(), clock=lambda: self.now, sleep=self.sleep
            )
        )
        try:
            yield
        finally:
            driver.cancel()
            await asyncio.gather(driver, return_exceptions=True)


async def test_a_change_after_a_quiet_while_is_ticked_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("controlplane.server.jobs.TICK_SECONDS", 3600.0)
    driven = Driven()
    async with driven.running():
        await driven.pause()
        driven.over.put_nowait(None)
        await asyncio.sleep(0)
        driven.signals.notify(FLEET_CHANGED)
        await driven.pause()
        assert driven.ticks == 2


async def test_rollouts_tick_without_any_change_as_they_have_timeouts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("controlplane.server.jobs.TICK_SECONDS", 0.01)
    driven = Driven()
    async with driven.running():
        await driven.pause()
        driven.over.put_nowait(None)
        await driven.pause()
        assert driven.ticks == 2


async def test_a_thousand_changes_during_a_pause_make_one_tick() -> None:
    driven = Driven()
    async with driven.running():
        await driven.pause()
        for _ in range(1000):
            driven.signals.notify(FLEET_CHANGED)
            await asyncio.sleep(0)
        assert driven.ticks == 1
        driven.over.put_nowait(None)
        await driven.pause()
        assert driven.ticks == 2


@pytest.mark.parametrize(
    ("tick_seconds", "pause"),
    [(0.0, LEAST_PAUSE_SECONDS), (0.125, 0.125 * PAUSE_PER_TICK), (60.0, TICK_SECONDS)],
)
async def test_a_tick_that_takes_longer_is_followed_by_a_longer_pause(
    tick_seconds: float, pause: float
) -> None:
    driven = Driven(tick_seconds=tick_seconds)
    async with driven.running():
        assert await driven.pause() == pause


async def test_a_cancellation_that_meets_a_change_is_heeded() -> None:
    """Otherwise the shutdown of the control plane would hang."""
    signals = Signals()

    async def tick() -> None:
        pass

    async def no_pause(seconds: float) -> None:
        pass

    driving = asyncio.create_task(drive_rollouts(tick, signals, Metrics(), sleep=no_pause))
    for _ in range(10):
        await asyncio.sleep(0)
    signals.notify(FLEET_CHANGED)
    # After one turn of the loop the event is set, but the waiting task has not resumed.
    await asyncio.sleep(0)
    driving.cancel()
    done, _ = await asyncio.wait({driving}, timeout=5)
    assert done
    assert driving.cancelled()
