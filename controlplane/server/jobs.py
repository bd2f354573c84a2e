"""Periodic jobs, and the loop that drives rollouts."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from controlplane.errors import StorageError
from controlplane.metrics import Metrics
from controlplane.services.signals import FLEET_CHANGED, Signals

log = logging.getLogger(__name__)

Work = Callable[[], Awaitable[None]]

# Rollouts have timeouts, which no signal announces.
TICK_SECONDS: Final = 1.0
# A busy fleet changes all the time; one tick handles every change since the last.
LEAST_PAUSE_SECONDS: Final = 0.05
# A tick over thousands of devices takes long; the pause leaves 4/5 of the time to requests.
PAUSE_PER_TICK: Final = 4.0


@dataclass(frozen=True, slots=True)
class PeriodicJob:
    """Work that runs at an interval, never twice at once; a failed run is logged and counted."""

    name: str
    every: timedelta
    work: Work


def jobs(
    *,
    refresh_metadata: Work,
    touch_streams: Work,
    expire_streams: Work,
    forget_windows: Work,
    forget_requests: Work,
    renew_certificate: Work,
    fill_reserve: Work,
    check_expiry: Work,
) -> tuple[PeriodicJob, ...]:
    """Return every periodic job; ``drive_rollouts`` runs the tick of the rollouts."""
    return (
        PeriodicJob("refresh_metadata", timedelta(minutes=10), refresh_metadata),
        PeriodicJob("touch_streams", timedelta(seconds=15), touch_streams),
        PeriodicJob("expire_streams", timedelta(seconds=30), expire_streams),
        PeriodicJob("forget_windows", timedelta(hours=1), forget_windows),
        PeriodicJob("forget_requests", timedelta(hours=6), forget_requests),
        PeriodicJob("renew_certificate", timedelta(hours=1), renew_certificate),
        PeriodicJob("fill_reserve", timedelta(minutes=5), fill_reserve),
        PeriodicJob("check_expiry", timedelta(minutes=10), check_expiry),
    )


def schedule(work: tuple[PeriodicJob, ...], metrics: Metrics) -> AsyncIOScheduler:
    """Return a scheduler for these jobs; start and stop it in a running event loop."""
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
    """Run a job once; an exception is logged and counted, so that the next run happens."""
    try:
        await work()
    except StorageError:
        # The database has logged the change of state; a traceback per run would hide it.
        metrics.job_failures.labels(name).inc()
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
    """Tick when the fleet changes, and at least every TICK_SECONDS, until cancelled.

    A pause follows every tick, however many changes arrive during it.
    """
    with signals.subscribe(FLEET_CHANGED) as changed:
        while True:
            changed.clear()
            began = clock()
            await run("tick_rollouts", tick, metrics)
            pause = max(LEAST_PAUSE_SECONDS, PAUSE_PER_TICK * (clock() - began))
            await sleep(min(pause, TICK_SECONDS))
            # asyncio.wait_for in Python 3.11 loses a cancellation that arrives with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await changed.wait()
