"""One worker process: start it, send it commands, watch its memory, end it."""

import asyncio
import contextlib
import itertools
import logging
import math
import os
import signal
import socket
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Callable
from typing import NamedTuple

from agent.errors import LoadFailedError, ProtocolError
from agent.supervisor.ending import STDERR_TAIL_BYTES, Ending
from agent.supervisor.footprint import Footprint
from agent.supervisor.launch import launch, load_command, load_failure
from agent.supervisor.sharing import Sharing
from agent.supervisor.spec import WorkerSpec, WorkerTimeouts
from agent.worker import messages
from runtimes.base import TensorSpec

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.2
SOCKET_BYTES = 4 << 20
# An idle model does not grow, and reading /proc is most of an idle daemon's work.
IDLE_SECONDS = 1.0
MAX_CONFINEMENT_CHARACTERS = 64
# Longest wait for the last events in the socket of a process that has ended.
DRAIN_SECONDS = 1.0


class ProcessGoneError(Exception):
    """The process ended before it answered; the text says how it ended.

    ``suspects`` is the number of commands that it was working on at its end; 0 if it had not begun
    this one, which then cannot be the cause.
    """

    def __init__(self, message: str, *, suspects: int) -> None:
        super().__init__(message)
        self.suspects = suspects


class _Pending(NamedTuple):
    """The caller of a command. None in ``events`` means that the process has ended."""

    events: "asyncio.Queue[messages.AnyEvent | None]"
    answered: Callable[[], None]


class WorkerProcess(asyncio.Protocol):
    """The daemon's end of one worker process."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec

        self.tensors: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] = (), ()
        self.parallel = 1
        # Time of the last event, or of the command that ended an idle time.
        self._alive_at = 0.0
        # Ids of the commands that were sent and have no final event yet, cancelled ones included.
        self._unanswered: set[int] = set()
        # Those of them that it had begun when it ended.
        self._suspects: frozenset[int] = frozenset()
        self._disconnected = asyncio.Event()
        self._silence_seconds = math.inf
        self.gone = asyncio.Event()
        self._process: Process | None = None
        self._transport: asyncio.Transport | None = None
        self._frames = messages.FrameReader()
        self.sharing = Sharing()
        self._ids = itertools.count(1)
        # Callers that wait for events, by command id.
        self._callers: dict[int, _Pending] = {}
        self._footprint = Footprint(self.sharing)
        self._ending = Ending(spec.memory_limit_bytes)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int:
        """Process id; 0 before the start."""
        return self._process.pid if self._process else 0

    async def start(self, timeouts: WorkerTimeouts, threads: int) -> None:
        """Spawn the process and load the model; on LoadFailedError no process is left."""
        loaded = False
        limit = timeouts.load_limit_seconds(self.spec.variant.size_bytes)
        try:
            await self._spawn()
            async with asyncio.timeout(limit):
                await self._load(threads)
            # Only from here on: a load sends no sign of life and has its own limit.
            self._silence_seconds = timeouts.silence_seconds
            loaded = True
        except TimeoutError as error:
            raise LoadFailedError(
                f"{self._name()} did not load within {limit:.0f} s",
                reason="timed_out",
                advice="Give the box a smaller variant, or look at its storage.",
            ) from error
        except OSError as error:
            raise LoadFailedError(
                f"{self._name()}: its worker could not be started: {error}",
                reason="not_started",
                advice="Free memory, processes or file descriptors on the box.",
            ) from error
        finally:
            if not loaded:
                await self.end()

    async def ask(
        self,
        make: Callable[[int], messages.AnyCommand],
        answered: Callable[[], None] = lambda: None,
    ) -> AsyncGenerator[messages.AnyEvent]:
        """Send a command and yield its events, the final one last; ProcessGoneError.

        ``answered`` is called when the final event arrives or the process ends, even if the caller
        has not read the earlier events. Closing the generator early cancels the command without
        waiting.
        """
        command_id = next(self._ids)
        events: asyncio.Queue[messages.AnyEvent | None] = asyncio.Queue()
        self._callers[command_id] = _Pending(events, answered)
        finished = sent = False
        try:
            try:
                sent = self._send(make(command_id))
            except Exception:
                # The command was too long, or there was no memory for it: it was not sent.
                self.sharing.forget(command_id)
                raise
            if sent:
                self._note_sent(command_id)
            while not finished:
                event = await self._next_event(events)
                if event is None:
                    suspects = len(self._suspects) if command_id in self._suspects else 0
                    raise ProcessGoneError(self.describe_end(), suspects=suspects)
                finished = isinstance(event, messages.FINAL)
                yield event
        finally:
            del self._callers[command_id]
            if sent and not finished and not self.gone.is_set():
                self._send(messages.Cancel(id=command_id))

    async def end(self) -> None:
        """Kill the process and its children; return when it has ended.

        No grace period: engines only read models, so there is no state to save.
        """
        if self._process is not None:
            self.kill()
            await self.gone.wait()

    def kill(self) -> None:
        """Kill the process and its children."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def memory_bytes(self) -> tuple[int, int]:
        """Return resident bytes now and at peak; now is 0 once the process has ended."""
        return self._footprint.look(0 if self.gone.is_set() else self.pid)

    @property
    def was_busy(self) -> bool:
        """True if it had a command to answer when it ended."""
        return bool(self._suspects)

    @property
    def ran_out_of_memory(self) -> bool:
        """True if it has ended for lack of memory."""
        return self.gone.is_set() and self._ending.ran_out_of_memory

    def describe_end(self) -> str:
        """Describe the end of the process for people."""
        return str(self._ending)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - narrows for mypy
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._alive_at = asyncio.get_running_loop().time()
        try:
            for payload in self._frames.feed(data):
                event = messages.decode_event(payload)
                if isinstance(event, messages.FINAL):
                    event = self.sharing.answered(event)
                    self._unanswered.discard(event.id)
                # Events of cancelled commands may still arrive: ignore them.
                if (pending := self._callers.get(event.id)) is not None:
                    pending.events.put_nowait(event)
                    if isinstance(event, messages.FINAL):
                        pending.answered()
        except ProtocolError as error:
            log.warning("worker_protocol_error pid=%d error=%s", self.pid, ascii(str(error)))
            self.kill()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio.Protocol's
        # Without its socket the process is useless, even if it still runs.
        self.kill()
        self._disconnected.set()

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        for end in (ours, theirs):
            # A larger buffer moves a tensor in fewer turns of the event loop.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        loop = asyncio.get_running_loop()
        try:
            with theirs:
                self._process = await launch(
                    theirs.fileno(), self.sharing.region, self.spec.memory_limit_bytes
                )
            self._tasks.append(loop.create_task(self._reap()))
            await loop.create_unix_connection(lambda: self, sock=ours)
        except BaseException:
            ours.close()
            raise

    async def _load(self, threads: int) -> None:
        spec = self.spec
        try:
            async for event in self.ask(lambda command_id: load_command(command_id, spec, threads)):
                match event:
                    case messages.Importing():
                        log.info(
                            "worker_confined slot=%s pid=%d confinement=%s",
                            spec.slot,
                            self.pid,
                            ascii(event.confinement[:MAX_CONFINEMENT_CHARACTERS]),
                        )
                        self._tasks.append(asyncio.create_task(self._watch()))
                    case messages.Loaded():
                        self.tensors = event.inputs, event.outputs
                        self.parallel = event.parallel
                        if self._outgrew_limit():
                            await self.gone.wait()
                            raise self._ending.on_load(self._name())
                    case messages.Failed():
                        raise load_failure(self._name(), event)
                    case _:
                        raise ProtocolError(
                            f"expected Importing, Loaded or Failed, received {type(event).__name__}"
                        )
        except ProcessGoneError as error:
            raise self._ending.on_load(self._name()) from error

    async def _next_event(
        self, events: asyncio.Queue[messages.AnyEvent | None]
    ) -> messages.AnyEvent | None:
        """Return the next event; None once the process has ended."""
        if events.empty() and self.gone.is_set():
            return None
        return await events.get()

    def _send(self, command: messages.AnyCommand) -> bool:
        """Write a command to the socket; return False if the process no longer reads it."""
        if self._transport is None or self._transport.is_closing():
            return False
        self._transport.write(messages.encode(command))
        return True

    def _note_sent(self, command_id: int) -> None:
        # Silence counts from the oldest unanswered command, not from this one: otherwise a stuck
        # worker would live as long as new callers keep coming.
        if not self._unanswered:
            self._alive_at = asyncio.get_running_loop().time()
        self._unanswered.add(command_id)

    async def _reap(self) -> None:
        """Wait for the end of the process, then wake everyone who waits for an event."""
        process = self._process
        assert process is not None  # noqa: S101 - started by _spawn, which set it
        assert process.stderr is not None  # noqa: S101 - it is a pipe
        while data := await process.stderr.read(STDERR_TAIL_BYTES):
            self._ending.append_stderr(data)
        self._ending.return_code = await process.wait()
        if self._transport is not None:
            # Read the final events that it sent before its end. A child that it has left behind
            # may keep the socket open, hence the limit.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    await self._disconnected.wait()
            self._transport.abort()
        started = self.sharing.started_id()
        self._suspects = frozenset(
            each for each in self._unanswered if started is None or each <= started
        )
        self.gone.set()
        self.sharing.end()
        for pending in tuple(self._callers.values()):
            pending.events.put_nowait(None)
            # Free the places now: a slow caller must not keep others from the next process.
            pending.answered()

    async def _watch(self) -> None:
        """Kill the process when it exceeds its memory limit or owes an answer for too long."""
        while not self._outgrew_limit() and not self._is_stuck():
            self.sharing.release_idle_pages(asyncio.get_running_loop().time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_SECONDS if self._unanswered else IDLE_SECONDS):
                    await self.gone.wait()
                return

    def _is_stuck(self) -> bool:
        """Kill the process if it is silent for too long; return True if it was killed."""
        silent = asyncio.get_running_loop().time() - self._alive_at
        if not self._unanswered or silent < self._silence_seconds:
            return False
        self._ending.fell_silent = True
        log.warning(
            "worker_stuck slot=%s pid=%d silent_seconds=%.0f unanswered=%d",
            self.spec.slot,
            self.pid,
            silent,
            len(self._unanswered),
        )
        self.kill()
        return True

    def _outgrew_limit(self) -> bool:
        """Kill the process if it exceeds its memory limit; return True if it did."""
        limit = self.spec.memory_limit_bytes
        taken = self.memory_bytes()[0]
        if not limit or taken <= limit:
            return False
        self._ending.over_limit_bytes = taken
        log.warning(
            "worker_over_limit slot=%s pid=%d taken_bytes=%d limit_bytes=%d",
            self.spec.slot,
            self.pid,
            taken,
            limit,
        )
        self.kill()
        return True

    def _name(self) -> str:
        return f"variant {self.spec.variant.name} of {self.spec.model.reference}"
