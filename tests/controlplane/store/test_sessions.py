"""Streams open, replace one another and end; the newest report of each device is kept."""

import inspect
from datetime import datetime, timedelta

from artifact.device_facts import DeviceFacts
from controlplane.fleet import UpdateState
from controlplane.server.jobs import jobs
from controlplane.services.ingest import SILENT_SECONDS
from controlplane.store import devices, sessions
from controlplane.store.database import Database
from controlplane.store.sessions import Greeting, Progress

GREETING = Greeting(
    boot_id="b",
    agent_version="1",
    facts=DeviceFacts(),
    hardware_class="c",
    current_release="",
    last_good_release="",
)


async def test_an_older_stream_does_not_end_the_newer(one: Database, now: datetime) -> None:
    async with one.write() as tx:
        await sessions.greet(tx, "id-box-1", "older", GREETING, now)
        await sessions.greet(tx, "id-box-1", "newer", GREETING, now)
        assert not await sessions.leave(tx, "id-box-1", "older", now)
        assert (await devices.get(tx, "box-1")).connected
        assert await sessions.leave(tx, "id-box-1", "newer", now)
        assert not (await devices.get(tx, "box-1")).connected


async def test_silent_streams_expire(one: Database, now: datetime) -> None:
    async with one.write() as tx:
        await sessions.greet(tx, "id-box-1", "s", GREETING, now)
        assert await sessions.expire(tx, now) == 0
        await sessions.touch(tx, ["id-box-1"], now + timedelta(seconds=50))
        assert await sessions.expire(tx, now + timedelta(seconds=49)) == 0
        assert await sessions.expire(tx, now + timedelta(seconds=51)) == 1


async def idle() -> None:
    """Do the work of a job."""


async def test_a_device_that_sends_no_status_for_an_hour_stays_connected(
    one: Database, now: datetime
) -> None:
    """Devices send on change: presence is the open stream, which gRPC's keepalive watches."""
    works = inspect.signature(jobs).parameters
    periods = {job.name: job.every for job in jobs(**dict.fromkeys(works, idle))}
    touch_seconds = periods["touch_streams"].total_seconds()
    assert touch_seconds <= SILENT_SECONDS / 3
    async with one.write() as tx:
        await sessions.greet(tx, "id-box-1", "s", GREETING, now)
        for touch in range(round(3600 / touch_seconds)):
            at = now + timedelta(seconds=touch * touch_seconds)
            await sessions.touch(tx, ["id-box-1"], at)
            assert await sessions.expire(tx, at - timedelta(seconds=SILENT_SECONDS)) == 0
        device = await devices.get(tx, "box-1")
        assert device.connected
        assert device.last_seen_at == at


async def test_progress_of_an_older_generation_is_out_of_date(one: Database, now: datetime) -> None:
    def progress(generation: int, state: UpdateState) -> Progress:
        return Progress(
            generation=generation,
            state=state,
            detail="",
            bytes_done=0,
            bytes_total=0,
            current_release="",
            last_good_release="",
        )

    async with one.write() as tx:
        for generation, state in ((2, UpdateState.FETCHING), (1, UpdateState.COMMITTED)):
            await sessions.report_progress(tx, "id-box-1", progress(generation, state), now)
        assert (await devices.get(tx, "box-1")).update_state is UpdateState.FETCHING
