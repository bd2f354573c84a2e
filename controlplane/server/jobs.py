"""Everything that happens by itself, on one page."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from controlplane.metrics import Metrics
from controlplane.services.signals import FLEET_CHANGED, Signals

log = logging.getLogger(__name__)

Work = Callable[[], Awaitable[None]]

# Rollouts also have timeouts, which no signal announces.
TICK_SECONDS: Final = 1.0
# A busy fleet changes all the time: what changes during a pause is taken together.
LEAST_PAUSE_SECONDS: Final = 0.05
# A tick over thousands of devices takes long: the rest of the server gets the greater part.
PAUSE_PER_TICK: Final = 4.0


@dataclass(frozen=True, slots=True)
class Job:
    """``work`` runs every so often, never twice at once; a failed run is logged and counted."""

    name: str
    every: timedelta
    work: Work


def jobs(
    *,
    refresh_trust: Work,
    touch_streams: Work,
    expire_streams: Work,
    forget_windows: Work,
    forget_requests: Work,
    renew_certificate: Work,
) -> tuple[Job, ...]:
    """All but the rollouts' tick, which ``drive_rollouts`` runs at every change."""
    return (
        Job("refresh_trust", timedelta(minutes=10), refresh_trust),
        Job("touch_streams", timedelta(seconds=15), touch_streams),
        Job("expire_streams", timedelta(seconds=30), expire_streams),
        Job("forget_windows", timedelta(hours=1), forget_windows),
        Job("forget_requests", timedelta(hours=6), forget_requests),
        Job("renew_certificate", timedelta(hours=1), renew_certificate),
    )


def schedule(work: tuple[Job, ...], metrics: Metrics) -> AsyncIOScheduler:
    """A scheduler for these jobs; start and stop it in a running event loop."""
    scheduler = AsyncIOScheduler(timezone="UTC")
    for job in work:
        scheduler.add_job(
            run,
            "interval",
            (job.name, job.work, metrics),
            id=job.name,
            seconds=job.every.total_seconds(),
            max_instances=1,
            coalesce=True,
        )
    return scheduler


async def run(name: str, work: Work, metrics: Metrics) -> None:
    """One run of a job: whatever it raises must not stop the next."""
    try:
        await work()
    except Exception:
        metrics.job_failures.labels(name).inc()
        log.exception("job_failed job=%s", name)


async def drive_rollouts(
    tick: Work,
    signals: Signals,
    metrics: Metrics,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Tick when the fleet changes, at once after a quiet while, and every second or so.

    Between two ticks stands a pause, however many changes there are. Until cancelled.
    """
    with signals.subscribe(FLEET_CHANGED) as changed:
        while True:
            changed.clear()
            began = clock()
            await run("tick_rollouts", tick, metrics)
            pause = max(LEAST_PAUSE_SECONDS, PAUSE_PER_TICK * (clock() - began))
            await sleep(min(pause, TICK_SECONDS))
            # Not wait_for, which in Python 3.11 forgets a cancellation that meets the change.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await changed.wait()
