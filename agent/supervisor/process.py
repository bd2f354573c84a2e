"""One worker process: start it, send it commands, watch its memory, end it."""

import asyncio
import contextlib
import itertools
import logging
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


class ProcessGoneError(Exception):
    """The process ended before it answered; the text says how it ended."""


class _Pending(NamedTuple):
    """A command without a final event. None in ``events`` means that the process has ended."""

    events: "asyncio.Queue[messages.AnyEvent | None]"
    answered: Callable[[], None]


class WorkerProcess(asyncio.Protocol):
    """The daemon's end of one worker process."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.model_memory_bytes = 0
        self.tensors: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] = (), ()
        self.parallel = 1
        self._last_event_at = 0.0
        self.gone = asyncio.Event()
        self._process: Process | None = None
        self._transport: asyncio.Transport | None = None
        self._frames = messages.FrameReader()
        self.sharing = Sharing()
        self._ids = itertools.count(1)
        self._waiting: dict[int, _Pending] = {}
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
        try:
            await self._spawn()
            async with asyncio.timeout(timeouts.load_seconds):
                await self._load(threads)
            loaded = True
        except TimeoutError as error:
            raise LoadFailedError(
                f"{self._name()} did not load within {timeouts.load_seconds:g} s",
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
        silence_seconds: float | None,
        answered: Callable[[], None] = lambda: None,
    ) -> AsyncGenerator[messages.AnyEvent]:
        """Send a command and yield its events, the final one last; ProcessGoneError.

        ``answered`` is called when the final event arrives, even if the caller has not read the
        earlier ones. Closing the generator early cancels the command without waiting.
        """
        command_id = next(self._ids)
        events: asyncio.Queue[messages.AnyEvent | None] = asyncio.Queue()
        self._waiting[command_id] = _Pending(events, answered)
        finished = False
        try:
            try:
                self._send(make(command_id))
            except Exception:
                # The command was too long, or there was no memory for it: it was not sent.
                self.sharing.forget(command_id)
                raise
            while not finished:
                event = await self._next_event(events, silence_seconds)
                finished = isinstance(event, messages.FINAL)
                yield event
        finally:
            del self._waiting[command_id]
            if not finished and not self.gone.is_set():
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
        self._last_event_at = asyncio.get_running_loop().time()
        try:
            for payload in self._frames.feed(data):
                event = messages.decode_event(payload)
                if isinstance(event, messages.FINAL):
                    event = self.sharing.answered(event)
                # Events of cancelled commands may still arrive: ignore them.
                if (pending := self._waiting.get(event.id)) is not None:
                    pending.events.put_nowait(event)
                    if isinstance(event, messages.FINAL):
                        pending.answered()
        except ProtocolError as error:
            log.warning("worker_protocol_error pid=%d error=%s", self.pid, ascii(str(error)))
            self.kill()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio.Protocol's
        # Without its socket the process is useless, even if it still runs.
        self.kill()

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
            async for event in self.ask(
                lambda command_id: load_command(command_id, spec, threads), silence_seconds=None
            ):
                match event:
                    case messages.Importing():
                        self._footprint.baseline_bytes = event.resident_bytes
                        log.info(
                            "worker_confined slot=%s pid=%d confinement=%s",
                            spec.slot,
                            self.pid,
                            ascii(event.confinement[:MAX_CONFINEMENT_CHARACTERS]),
                        )
                        self._tasks.append(asyncio.create_task(self._watch_memory()))
                    case messages.Loaded():
                        self.model_memory_bytes = event.model_memory_bytes
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
        self, events: asyncio.Queue[messages.AnyEvent | None], silence_seconds: float | None
    ) -> messages.AnyEvent:
        if events.empty() and self.gone.is_set():
            raise ProcessGoneError(self.describe_end())
        event = await self._wait(events, silence_seconds) if events.empty() else events.get_nowait()
        if event is None:
            await self.gone.wait()
            raise ProcessGoneError(self.describe_end())
        return event

    async def _wait(
        self, events: asyncio.Queue[messages.AnyEvent | None], silence_seconds: float | None
    ) -> messages.AnyEvent | None:
        """Return the next event; None after killing a process that is silent to all callers."""
        while True:
            try:
                async with asyncio.timeout(silence_seconds):
                    return await events.get()
            except TimeoutError:
                silent = asyncio.get_running_loop().time() - self._last_event_at
                if silent >= (silence_seconds or 0):
                    self._ending.fell_silent = True
                    self.kill()
                    return None

    def _send(self, command: messages.AnyCommand) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(messages.encode(command))

    async def _reap(self) -> None:
        """Wait for the end of the process, then wake everyone who waits for an event."""
        process = self._process
        assert process is not None  # noqa: S101 - started by _spawn, which set it
        assert process.stderr is not None  # noqa: S101 - it is a pipe
        while data := await process.stderr.read(STDERR_TAIL_BYTES):
            self._ending.append_stderr(data)
        self._ending.return_code = await process.wait()
        self.gone.set()
        self.sharing.end()
        if self._transport is not None:
            self._transport.abort()
        for pending in self._waiting.values():
            pending.events.put_nowait(None)

    async def _watch_memory(self) -> None:
        while not self._outgrew_limit():
            self.sharing.release_idle_pages(asyncio.get_running_loop().time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_SECONDS if self._waiting else IDLE_SECONDS):
                    await self.gone.wait()
                return

    def _outgrew_limit(self) -> bool:
        """Kill the process if it exceeds its memory limit; return True if it did."""
        limit = self.spec.memory_limit_bytes
        taken = self._footprint.beyond(limit, self.memory_bytes()[0])
        if not taken:
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
