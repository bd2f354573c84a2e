"""The stream to the control plane: reconnected without end, level-triggered in both directions.

Receipts stay in the journal and windows in the telemetry queue until the server acknowledges them.
A stream may therefore break at any time: the next one sends again what was not acknowledged.
"""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, TypeAlias

import grpc
import grpc.aio
from flotilla.v1 import device_pb2
from google.protobuf.message import DecodeError

from agent.backoff import Backoff
from agent.errors import IdentityError, JournalError, NotaryLostError
from agent.identity.credentials import Credentials
from agent.journal import Assignment, Journal
from agent.link.connection import Connection
from agent.link.device_warnings import DeviceWarnings
from agent.link.pacing import STANDARD, Pace, seconds_until_due
from agent.link.problems import explain
from agent.link.translate import (
    assignment_from_wire,
    authorities_from_wire,
    facts_to_wire,
    metadata_versions,
    priors_from_wire,
    queued_to_wire,
    receipt_to_wire,
    retry_after_seconds,
    status_to_wire,
)
from agent.selection import Prior
from agent.telemetry import TelemetryQueue
from agent.update.engine import UpdateEngine
from artifact.device_facts import DeviceFacts
from artifact.health import ReleaseHealth
from artifact.trust.statements import Authorities

log = logging.getLogger(__name__)

# Generic only for the type checker.
_Call: TypeAlias = (
    "grpc.aio.StreamStreamCall[device_pb2.ConnectRequest, device_pb2.ConnectResponse]"
)

BATCH_WINDOWS: Final = 500
# Until the server sets the length of telemetry windows.
DEFAULT_WINDOW_SECONDS: Final = 60.0
# After a stream of at least this length the backoff starts again from its first step.
STABLE_SECONDS: Final = 30.0
# grpc.aio may leave a call pending for ever if its channel closes before it is connected.
OPENING_SECONDS: Final = 30.0
# The shortest telemetry window that a server may ask for.
LEAST_INTERVAL_SECONDS: Final = 0.1
# Changes within this time are sent together: an update passes several states within milliseconds.
COALESCE_SECONDS: Final = 0.2
# More assignments than any device gets; SQLite's integers end at 2^63.
MAX_GENERATION: Final = 1 << 32
# A person has to act before the server admits this box again, so retry slowly.
_REFUSALS: Final = frozenset({grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED})


async def _ignored(_: Authorities | Assignment) -> None:
    """Ignore what the server sent: the default of the callbacks."""


@dataclass
class StreamSettings:
    """Intervals that the control plane and the box's owner set; the longer one counts."""

    refresh_seconds: float
    telemetry_window_seconds: float


@dataclass
class _Sent:
    """Messages sent on one stream: the last status, and what awaits acknowledgement."""

    status: device_pb2.UpdateStatus | None = None
    status_at: float = float("-inf")
    receipts: set[int] = field(default_factory=set)
    # Boot id of the telemetry batch that awaits its acknowledgement; one batch at a time.
    boot_id: str | None = None


class ControlPlaneStream:
    """The daemon's one stream. Call ``wake`` when there may be something to send."""

    def __init__(
        self,
        connection: Connection,
        engine: UpdateEngine,
        journal: Journal,
        telemetry: TelemetryQueue,
        *,
        facts: Callable[[], DeviceFacts],
        identity: Callable[[], Credentials],
        sign: Callable[[bytes], Awaitable[bytes]],
        agent_version: str,
        health: Callable[[], ReleaseHealth] = ReleaseHealth,
        offered: Callable[[Authorities], Awaitable[None]] = _ignored,
        directed: Callable[[Assignment], Awaitable[None]] = _ignored,
        class_measured: Callable[[Sequence[tuple[str, str, Prior]]], None] = lambda _: None,
        backoff: Backoff | None = None,
        refused_backoff: Backoff | None = None,
        pace: Pace = STANDARD,
        warnings: DeviceWarnings | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._connection = connection
        self._engine = engine
        self._journal = journal
        self._telemetry = telemetry
        self._facts = facts
        self._identity = identity
        self._sign = sign
        self._agent_version = agent_version
        self._health = health
        self._offered = offered
        self._directed = directed
        self._class_measured = class_measured
        self._backoff = backoff or Backoff(0.5, 30)
        self._refused_backoff = refused_backoff or Backoff(5, 300)
        self._now = now
        self._news = asyncio.Event()
        self._reconnecting = asyncio.Event()
        self._pace = pace
        self._warnings = warnings or DeviceWarnings()
        self.settings = StreamSettings(
            pace.refresh_seconds, max(pace.window_seconds, DEFAULT_WINDOW_SECONDS)
        )
        self.settings_changed = asyncio.Event()
        self.connected = False
        # The reason why the last stream failed, with advice, for the owner; empty when connected.
        self.problem = ""

    def wake(self) -> None:
        """Look for something to send: a state, a receipt or a window may be new."""
        self._news.set()

    def reconnect(self) -> None:
        """End a wait between two streams: the certificate or the server is another now."""
        self._reconnecting.set()

    async def run(self) -> None:
        """Keep a stream open until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            asked, backoff = 0.0, self._backoff
            try:
                await self._live()
                log.info("stream_ended by=server")
            except grpc.aio.AioRpcError as error:
                asked = retry_after_seconds(error)
                if error.code() in _REFUSALS:
                    backoff = self._refused_backoff
                self.problem = explain(error, self._identity(), self._now())
                log.warning("stream_broken problem=%s", ascii(self.problem))
            except TimeoutError:
                self.problem = f"the server did not answer within {OPENING_SECONDS:.0f} s"
                log.warning("stream_broken problem=%s", ascii(self.problem))
            except _GarbledError:
                self.problem = "the server sent a message that cannot be parsed. Update the agent."
                log.warning("stream_broken problem=%s", ascii(self.problem))
            except (JournalError, IdentityError, NotaryLostError, sqlite3.Error) as error:
                # Without the disk there are no receipts and no telemetry, but serving goes on.
                self.problem = f"receipts or telemetry cannot be read or signed: {error}"
                log.warning("stream_broken problem=%s", ascii(self.problem))
            finally:
                self.connected = False
            if loop.time() - began > STABLE_SECONDS:
                backoff.reset()
            wait = backoff.next_seconds(asked)
            log.debug("stream_retried after_seconds=%.2f", wait)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._reconnecting.wait()
            self._reconnecting.clear()

    async def _live(self) -> None:
        """Run one stream from hello to its end."""
        call: _Call = self._connection.stub.Connect()
        sent = _Sent()
        tasks: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(OPENING_SECONDS):
                await call.write(device_pb2.ConnectRequest(hello=self._hello()))
                # The server answers only a device that it admits.
                await self._take(_message(await call.read()), sent)
            self.connected, self.problem = True, ""
            self._refused_backoff.reset()
            log.info("stream_open")
            tasks = [
                asyncio.create_task(self._receive(call, sent)),
                asyncio.create_task(self._send(call, sent)),
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (_StreamEndedError, asyncio.InvalidStateError, asyncio.CancelledError):
            # Closing the channel of a replaced certificate cancels its last calls: no reason to
            # end this task.
            if _is_cancelled():
                raise
            # The server ended the call: its status has the reason.
            if await call.code() is not grpc.StatusCode.OK:
                raise await _error_of(call) from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            call.cancel()

    async def _receive(self, call: _Call, sent: _Sent) -> None:
        while True:
            await self._take(_message(await call.read()), sent)

    def _hello(self) -> device_pb2.Hello:
        status = self._engine.status()
        return device_pb2.Hello(
            boot_id=self._telemetry.boot_id,
            agent_version=self._agent_version,
            facts=facts_to_wire(self._facts()),
            generation=status.generation,
            current_release=status.current_release,
            last_good_release=status.last_good_release,
            metadata_versions=metadata_versions(self._journal.floors()),
        )

    async def _take(self, message: device_pb2.ConnectResponse, sent: _Sent) -> None:
        match message.WhichOneof("message"):
            case "assignment":
                assignment = assignment_from_wire(message.assignment)
                if assignment.generation > MAX_GENERATION:
                    # Accepting it would make every later assignment look old.
                    log.warning("assignment_refused generation=%d", assignment.generation)
                    return
                log.info(
                    "assignment_received generation=%d release=%s",
                    assignment.generation,
                    ascii(assignment.release),
                )
                # Before the assignment: choosing variants uses them.
                self._class_measured(priors_from_wire(message.assignment.class_measurements))
                self._warn_if_outdated(assignment)
                self._engine.assign(assignment)
                await self._directed(assignment)
            case "ack":
                try:
                    await self._acknowledged(message.ack, sent)
                except (JournalError, sqlite3.Error) as error:
                    # The disk may be full. The next stream sends these receipts and windows again.
                    log.warning("ack_not_stored error=%s", ascii(str(error)))
            case "settings":
                self._settings(message.settings)
            case "authorities":
                await self._offered(authorities_from_wire(message.authorities))
            case None:
                log.info("message_unknown advice='update the agent'")

    def _warn_if_outdated(self, assignment: Assignment) -> None:
        """Report an assignment that the engine will ignore: without it the fleet stands still."""
        text = ""
        if self._engine.is_outdated(assignment):
            text = (
                f"the server assigned generation {assignment.generation} "
                f"({ascii(assignment.release)[1:-1] or 'no release'}), and this device has taken "
                f"on {self._engine.status().generation}: it was probably restored from a backup. "
                "The device keeps what it runs until the server assigns a higher generation."
            )
        self._warnings.set("assignment", text)

    async def _acknowledged(self, ack: device_pb2.Ack, sent: _Sent) -> None:
        if ack.receipt_generations:
            generations = list(ack.receipt_generations)
            await asyncio.to_thread(self._journal.acknowledge, generations)
        if ack.telemetry_sequence and sent.boot_id is not None:
            await asyncio.to_thread(
                self._telemetry.acknowledge, sent.boot_id, ack.telemetry_sequence
            )
            sent.boot_id = None
            self.wake()

    def _settings(self, settings: device_pb2.Settings) -> None:
        # Servers of earlier versions ask for a status twice a second, which an idle box on a link
        # paid by volume cannot afford: the box's own interval is the minimum.
        if settings.status_interval_seconds > 0:
            self.settings.refresh_seconds = max(
                self._pace.refresh_seconds, settings.status_interval_seconds
            )
        if settings.telemetry_window_seconds > 0:
            self.settings.telemetry_window_seconds = max(
                LEAST_INTERVAL_SECONDS, self._pace.window_seconds, settings.telemetry_window_seconds
            )
        self.settings_changed.set()

    async def _send(self, call: _Call, sent: _Sent) -> None:
        """Send new status, receipts and telemetry whenever ``wake`` was called."""
        loop = asyncio.get_running_loop()
        self._news.set()
        while True:
            await self._send_status(call, sent, loop.time())
            if self._news.is_set():
                self._news.clear()
                await self._send_receipts(call, sent)
                await self._send_telemetry(call, sent)
            await asyncio.sleep(COALESCE_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._seconds_until_status(sent, loop.time())):
                    await self._news.wait()

    async def _send_status(self, call: _Call, sent: _Sent, now: float) -> None:
        if self._seconds_until_status(sent, now) > 0:
            return
        status = status_to_wire(self._engine.status(), self._health(), self._warnings.texts)
        await call.write(device_pb2.ConnectRequest(status=status))
        sent.status, sent.status_at = status, now

    def _seconds_until_status(self, sent: _Sent, now: float) -> float:
        pace = replace(self._pace, refresh_seconds=self.settings.refresh_seconds)
        status = status_to_wire(self._engine.status(), self._health(), self._warnings.texts)
        return seconds_until_due(status, sent.status, now - sent.status_at, pace)

    async def _send_receipts(self, call: _Call, sent: _Sent) -> None:
        for receipt in await asyncio.to_thread(self._journal.receipts):
            if receipt.generation in sent.receipts:
                continue
            data = receipt_to_wire(receipt).SerializeToString(deterministic=True)
            signed = device_pb2.SignedReceipt(receipt=data, signature=await self._sign(data))
            await call.write(device_pb2.ConnectRequest(receipt=signed))
            sent.receipts.add(receipt.generation)

    async def _send_telemetry(self, call: _Call, sent: _Sent) -> None:
        if sent.boot_id is not None:
            return
        pending = await asyncio.to_thread(self._telemetry.pending, BATCH_WINDOWS)
        if not pending:
            return
        boot_id, last = pending[0].boot_id, pending[-1].sequence
        windows = []
        for queued in pending:
            try:
                windows.append(queued_to_wire(queued))
            except DecodeError:
                log.warning("window_damaged sequence=%d", queued.sequence)
        if not windows:
            # Without an acknowledgement the damaged windows would block all later ones.
            await asyncio.to_thread(self._telemetry.acknowledge, boot_id, last)
            return
        sent.boot_id = boot_id
        batch = device_pb2.TelemetryBatch(boot_id=boot_id, windows=windows)
        await call.write(device_pb2.ConnectRequest(telemetry=batch))


def _is_cancelled() -> bool:
    """Tell a cancelled task from a cancelled call within it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _StreamEndedError(Exception):
    """The server closed its side of the stream."""


class _GarbledError(Exception):
    """A message from the server cannot be parsed."""


def _message(read: object) -> device_pb2.ConnectResponse:
    if read is grpc.aio.EOF:
        raise _StreamEndedError
    if not isinstance(read, device_pb2.ConnectResponse):
        raise _GarbledError
    return read


async def _error_of(call: _Call) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await call.code(),
        await call.initial_metadata(),
        await call.trailing_metadata(),
        details=await call.details(),
    )
