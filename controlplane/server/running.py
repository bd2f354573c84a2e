"""Start and stop of the control plane, in order."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

from controlplane.config import Config
from controlplane.disk import DiskReserve, is_no_space
from controlplane.errors import StorageError
from controlplane.server.composition import Services
from controlplane.server.data_directory import Endpoints, locked, write_contexts
from controlplane.server.jobs import PeriodicJob, drive_rollouts, jobs, schedule
from controlplane.server.ports import start_device_port, start_http, start_public_port
from controlplane.services.keys.server_keys import ServerKeys
from controlplane.store import requests
from controlplane.store.database import Database, embedded_url, open_database
from controlplane.store.migrate import downgrade, migrate

log = logging.getLogger(__name__)


def now() -> datetime:
    return datetime.now(UTC)


@contextlib.asynccontextmanager
async def running(config: Config, clock: Callable[[], datetime] = now) -> AsyncIterator[Endpoints]:
    """Run a control plane that answers on its ports within this block.

    Makes the data directory on the first start. Raises DataDirectoryError and AddressError.
    """
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(locked(config.data_dir))
        # Before the database is opened: SQLite cannot read without space for its shared memory.
        reserve = DiskReserve(config.data_dir)
        reserve.release_if_full()
        keys = ServerKeys(
            config.data_dir / "keys",
            config.certificate_names,
            timedelta(days=config.server_certificate_days),
            clock(),
        )
        database = _open(config)
        stack.push_async_callback(database.close)
        await migrate(database)
        services = Services(config, database, keys, clock)
        stack.push_async_callback(services.deltas.close)
        # The embedded database has one server, so every session in it is from an earlier process.
        # Other replicas of a PostgreSQL server may still hold theirs.
        await _if_storage_allows(services.ingest.expire(everyone=database.embedded))
        await _if_storage_allows(services.repository.refresh())
        await services.expiry.check()
        # Health first, so that a slow start is visible; the public port last, because the address
        # of the device port is part of what enrolment answers.
        http = await start_http(services, stack)
        device = await start_device_port(services, stack)
        public = await start_public_port(services, device, stack)
        endpoints = Endpoints(public, device, http)
        await _if_storage_allows(write_contexts(services, endpoints))
        scheduler = schedule(_jobs(services, reserve), services.metrics)
        scheduler.start()
        # A job that runs must not delay the stop: every job can be cut off and repeated.
        stack.callback(scheduler.shutdown, wait=False)
        driving = drive_rollouts(services.driver.tick, services.signals, services.metrics)
        stack.push_async_callback(_cancel, asyncio.create_task(driving))
        await asyncio.to_thread(reserve.fill)
        services.readiness.started()
        log.info("server_started public=%s device=%s http=%s", public, device, http)
        yield endpoints
        log.info("server_stopping")


async def downgrade_schema(config: Config, to: str) -> None:
    """Undo the migrations after ``to``, while no server runs on the data directory."""
    with locked(config.data_dir):
        database = _open(config)
        try:
            await downgrade(database, to)
        finally:
            await database.close()


def _open(config: Config) -> Database:
    return open_database(config.database_url or embedded_url(config.data_dir / "flotilla.db"))


def _jobs(services: Services, reserve: DiskReserve) -> tuple[PeriodicJob, ...]:
    async def renew_certificate() -> None:
        if await asyncio.to_thread(services.keys.renew, services.clock()):
            log.info("server_certificate_renewed")

    async def fill_reserve() -> None:
        await asyncio.to_thread(reserve.fill)

    async def forget_requests() -> None:
        retention = timedelta(days=services.config.request_retention_days)
        async with services.database.write() as tx:
            await requests.forget(tx, services.clock() - retention)

    return jobs(
        refresh_metadata=services.repository.refresh,
        touch_streams=lambda: services.ingest.touch(services.streams.devices()),
        expire_streams=services.ingest.expire,
        forget_windows=lambda: services.ingest.forget_windows(
            timedelta(days=services.config.telemetry_retention_days)
        ),
        forget_requests=forget_requests,
        renew_certificate=renew_certificate,
        fill_reserve=fill_reserve,
        check_expiry=services.expiry.check,
    )


async def _if_storage_allows(work: Awaitable[None]) -> None:
    """Run a step of the start that a server on a full disk can do without."""
    try:
        await work
    except StorageError as error:
        log.warning("start_step_skipped reason=%s", error)
    except OSError as error:
        if not is_no_space(error):
            raise
        log.warning("start_step_skipped reason=%s", error)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
