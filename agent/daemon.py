"""The daemon: construction of all parts, their start and their shutdown."""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.config import AgentConfig, DataDir, load_config
from agent.errors import AlreadyRunningError
from agent.gateway import Gateway
from agent.gateway.recording import labels_of
from agent.gateway.release_health import release_health
from agent.hardware import HardwareMonitor, read_facts
from agent.health import daemon_fault, feed_watchdog
from agent.host.allocator import IdleTrim
from agent.host.systemd import notify
from agent.identity.credentials import Credentials
from agent.journal import Journal
from agent.link.connection import Connection
from agent.link.device_warnings import DeviceWarnings
from agent.link.expiry import ExpiryWatch
from agent.link.metadata import StreamedVerifier
from agent.link.pacing import METERED, STANDARD
from agent.link.renewal import Renewal
from agent.link.stream import ControlPlaneStream
from agent.link.translate import window_to_wire
from agent.notary import Notary, expect
from agent.notary import questions as q
from agent.power import ThrottleMonitor, ThrottleReader, discover, keep_sampling
from agent.power.energy import PowerMeter
from agent.serving import Serving
from agent.storage.atomic_file import write_file
from agent.storage.download import Downloader
from agent.storage.file_store import FileStore
from agent.storage.permissions import make_private
from agent.supervisor import Supervisor
from agent.telemetry import Collector, TelemetryQueue, WorkerGauge
from agent.update.engine import UpdateEngine
from agent.update.keeper import Keeper
from agent.update.loading import Loader
from agent.update.measurements import MeasurementStore
from agent.update.steps import Steps

log = logging.getLogger(__name__)

# A wrong clock, or metadata that has to be signed again, delays an update by at most this.
BOX_FAULT_SECONDS: Final = 900.0
# Memory of the box that models never take, for all other processes.
MEMORY_RESERVE_BYTES: Final = 64 << 20


class Daemon:
    """The parts of one agent process on one data directory."""

    def __init__(
        self,
        data_dir: DataDir,
        config: AgentConfig,
        meter: PowerMeter | None,
        notary: Notary,
        identity: Credentials,
    ) -> None:
        self._data_dir = data_dir
        self._config = config
        self._meter = meter
        self._notary = notary
        self._hardware = HardwareMonitor(
            data_dir.facts, lambda: read_facts(config.model_memory_bytes)
        )
        self._measurements = MeasurementStore(data_dir.measurements)
        self._journal = Journal(data_dir.journal)
        self._telemetry = _telemetry_queue(data_dir.telemetry)
        self._throttling = ThrottleMonitor(ThrottleReader())
        self._collector = Collector(meter, throttled_seconds=lambda: self._throttling.seconds)
        self._idle_trim = IdleTrim()
        # There were requests in the last window; memory is returned after the first without any.
        self._had_requests = False
        self._supervisor = Supervisor(
            free_bytes=_free_memory_bytes,
            budget_bytes=lambda: self._hardware.facts.model_memory_bytes,
            changed=self._health_changed,
            threads=lambda: self._hardware.facts.threads,
        )
        self._serving = Serving(self._supervisor)
        self._connection = Connection(config.device_endpoint, identity)
        self._warnings = DeviceWarnings(self._changed)
        self._renewal = Renewal(
            data_dir,
            identity,
            self._connection,
            ask=notary.ask,
            name=config.name,
            replaced=self._reconnect,
        )
        verifier = StreamedVerifier(config.device_id, self._connection, self._journal, notary.ask)
        self._engine = UpdateEngine(self._journal, self._steps(verifier), changed=self._changed)
        self._stream = ControlPlaneStream(
            self._connection,
            self._engine,
            self._journal,
            self._telemetry,
            facts=lambda: self._hardware.facts,
            identity=lambda: self._renewal.identity,
            sign=self._sign,
            offered=self._renewal.offer,
            directed=verifier.follow_roots,
            class_measured=self._measurements.set_priors,
            agent_version=version("flotilla"),
            health=lambda: release_health(self._serving, self._collector),
            pace=METERED if config.metered else STANDARD,
            warnings=self._warnings,
        )
        self._expiry = ExpiryWatch(
            data_dir.metadata,
            lambda: self._renewal.identity,
            self._warnings,
            refresh=lambda: self._refresh_metadata(verifier),
        )
        self._gateway = Gateway(self._serving, self._collector, self.status)

    def _steps(self, verifier: StreamedVerifier) -> Steps:
        store = FileStore(self._data_dir.files, budget_bytes=self._config.disk_budget_bytes)
        loader = Loader(store, self._supervisor, self._serving)
        return Steps(
            journal=self._journal,
            store=store,
            source=self._connection,
            downloader=Downloader(store, self._connection),
            verifier=verifier,
            loader=loader,
            keeper=Keeper(self._journal, loader, self._serving, changed=self._changed),
            serving=self._serving,
            facts=lambda: self._hardware.facts,
            meter=self._measuring_meter(),
            changed=self._changed,
            measurements=self._measurements,
            patience_seconds=BOX_FAULT_SECONDS,
        )

    async def _refresh_metadata(self, verifier: StreamedVerifier) -> None:
        """Verify the current release again, which fetches the newest metadata."""
        if (current := self._journal.pointers().current) is not None:
            await verifier.resolve(current.reference)

    def _measuring_meter(self) -> PowerMeter | None:
        """Return the meter unless it estimates: estimates must not decide between variants."""
        estimates = self._meter is None or self._meter.provenance.method == "estimated"
        return None if estimates else self._meter

    async def _sign(self, data: bytes) -> bytes:
        return expect(q.Signed, await self._notary.ask(q.Sign(data=data))).data

    def _reconnect(self) -> None:
        self._stream.reconnect()

    def _health_changed(self) -> None:
        self._stream.wake()

    def _changed(self) -> None:
        self._stream.wake()
        self._idle_trim.schedule()
        status = self._engine.status()
        notify(f"STATUS={status.state}, serving {status.current_release or 'nothing'}")

    def status(self) -> dict[str, Any]:
        """Return the document of /status and `flotilla-agent status`."""
        deployment = self._serving.deployment
        workers = deployment.workers if deployment else {}
        return {
            "name": self._config.name,
            "device_id": self._config.device_id,
            "version": version("flotilla"),
            "running": True,
            "connected": self._stream.connected,
            "problem": self._stream.problem,
            "warnings": self._warnings.texts,
            "update": asdict(self._engine.status()),
            "serves": deployment.release.reference if deployment else "",
            "slots": {
                slot: {
                    "model": worker.spec.model.reference,
                    "variant": worker.spec.variant.name,
                    "runtime": worker.spec.variant.runtime,
                    **asdict(worker.stats()),
                }
                for slot, worker in workers.items()
            },
            "energy": str(self._meter.provenance) if self._meter else "unmeasured",
            "throttled": sorted(self._throttling.reasons),
            "telemetry": {"pending": len(self._telemetry), "dropped": self._telemetry.dropped},
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set, then drain requests and end all parts."""
        host, _, port = self._config.gateway.rpartition(":")
        if host == "unix":
            host, port = self._config.gateway, "0"
        try:
            address = await self._gateway.start(host, int(port))
            self._write_address(address)
            await self._work(stop, address)
        finally:
            notify("STOPPING=1")
            self._data_dir.gateway.unlink(missing_ok=True)
            # In this order: requests drain while workers live, and the last window counts them.
            await self._gateway.stop()
            await self._close_window()
            await self._supervisor.close()
            await self._connection.close()
            await self._notary.close()
            self._telemetry.close()
            self._journal.close()

    def _write_address(self, address: str) -> None:
        try:
            write_file(self._data_dir.gateway, msgspec.json.encode({"address": address}))
        except OSError as error:
            # `flotilla-agent status` then reads the journal instead; serving matters more.
            log.warning("address_not_written address=%s error=%s", address, ascii(str(error)))

    async def _work(self, stop: asyncio.Event, address: str) -> None:
        async with asyncio.TaskGroup() as group:
            work = [
                self._engine.run(),
                self._follow(),
                self._hardware.watch(),
                self._roll_windows(),
                self._renewal.run(),
                self._expiry.run(),
                self._throttling.watch(),
                feed_watchdog(lambda: daemon_fault(address, self._supervisor)),
            ]
            if self._meter is not None:
                work.append(keep_sampling(self._meter))
            tasks = [group.create_task(each) for each in work]
            notify("READY=1")
            log.info("agent_started name=%s device=%s", self._config.name, self._config.device_id)
            await stop.wait()
            log.info("agent_stopping")
            for task in tasks:
                task.cancel()

    async def _follow(self) -> None:
        """Measure the box, then connect to the control plane."""
        # Hello carries the figures, by which the server predicts and classifies.
        await self._hardware.benchmark()
        await self._stream.run()

    async def _roll_windows(self) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        while True:
            changed = self._stream.settings_changed
            changed.clear()
            left = started + self._stream.settings.telemetry_window_seconds - loop.time()
            if left > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await changed.wait()
                continue
            started = loop.time()
            await self._close_window()

    async def _close_window(self) -> None:
        deployment = self._serving.deployment
        gauges = []
        for worker in deployment.workers.values() if deployment else ():
            stats = worker.stats()
            gauges.append(WorkerGauge(labels_of(worker), stats.peak_memory_bytes, stats.restarts))
        windows = self._collector.roll(gauges)
        for window in windows:
            encoded = window_to_wire(window).SerializeToString()
            await asyncio.to_thread(self._telemetry.append, encoded)
        if windows:
            self._stream.wake()
        elif self._had_requests:
            self._idle_trim.schedule()
        self._had_requests = bool(windows)


async def run(data_dir: DataDir) -> None:
    """Run the agent until SIGTERM or SIGINT; AgentError if it cannot start."""
    config = load_config(data_dir)
    with exclusive(data_dir):
        await asyncio.to_thread(make_private, data_dir.root)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        model = config.power_model
        guess = (model.idle_watts, model.full_watts) if model else None
        # Blocking: meters are read for a second to see whether their counters move.
        meter = await asyncio.to_thread(discover, estimate=guess)
        notary = Notary(data_dir)
        identity = expect(q.Identified, await notary.ask(q.WhoAmI())).credentials
        await Daemon(data_dir, config, meter, notary, identity).run(stop)
        log.info("agent_stopped")


@contextlib.contextmanager
def exclusive(data_dir: DataDir) -> Iterator[None]:
    """Lock the data directory against other agent processes; AlreadyRunningError."""
    # flock, not the existence of the file: the kernel releases it if the process is killed.
    descriptor = os.open(data_dir.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace")
            raise AlreadyRunningError(
                f"the process {holder!a} already uses {data_dir.root}",
                advice="Stop it first: `systemctl stop flotilla-agent`, or by its process id.",
            ) from None
        # The process id is only for the message above; on a full disk the lock alone suffices.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _telemetry_queue(path: Path) -> TelemetryQueue:
    """Open the queue on the disk, or in memory if the disk is full or the file damaged."""
    # One id per process: sequences start again with a new queue, so the kernel's boot id would name
    # two windows alike if the queue was lost.
    boot_id = os.urandom(8).hex()
    try:
        return TelemetryQueue(path, boot_id)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        log.warning("telemetry_kept_in_memory error=%s", ascii(str(error)))
        return TelemetryQueue(Path(":memory:"), boot_id)


def _free_memory_bytes() -> int:
    """Return the kernel's MemAvailable less a reserve."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return max(0, int(rest.split()[0]) * 1024 - MEMORY_RESERVE_BYTES)
    return 0
