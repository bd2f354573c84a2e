"""The successive processes of one model: restart after a crash, unload while idle."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from agent.backoff import Backoff
from agent.errors import LoadFailedError, WorkerUnavailableError
from agent.supervisor.idle_timer import IdleTimer
from agent.supervisor.process import WorkerProcess
from agent.supervisor.spec import WorkerSpec, WorkerStats, WorkerTimeouts

log = logging.getLogger(__name__)

LOAD_AGAIN: Final = "Send the request again later."


class Lifecycle:
    """Owns the present process of a model. ``room`` returns the free memory for a reload."""

    def __init__(
        self,
        spec: WorkerSpec,
        process: WorkerProcess,
        timeouts: WorkerTimeouts,
        threads: Callable[[], int],
        room: Callable[[], int],
        *,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.process = process
        self._spec = spec
        self._timeouts = timeouts
        self._threads = threads
        self._room = room
        self._changed = changed
        self._restarts = 0
        self._loads = 1
        self._past_peak_bytes = 0
        self._starved = False
        self._live = asyncio.Event()
        self._live.set()
        self._stopped = False
        self._unloaded = False
        self._wanted = asyncio.Event()
        # Result of a reload: the error, or None. Created by the first caller that needs one.
        self._waking: asyncio.Future[LoadFailedError | None] | None = None
        self.idle_timer = IdleTimer(spec.idle_unload_seconds, self._unload)
        self._keeper = asyncio.create_task(self._keep())

    @property
    def stopped(self) -> bool:
        """True after ``stop``."""
        return self._stopped

    @property
    def unsupervised(self) -> bool:
        """True if the task that restarts the process has ended without ``stop``: a defect."""
        return self._keeper.done() and not self._stopped

    @property
    def ran_out_of_memory(self) -> bool:
        """True if any of its processes ended for lack of memory."""
        return self._starved or self.process.ran_out_of_memory

    def stats(self, waiting: int) -> WorkerStats:
        """Return present and peak figures."""
        memory, peak = self.process.memory_bytes()
        loaded = self._live.is_set() and not self._stopped
        return WorkerStats(
            memory_bytes=memory,
            peak_memory_bytes=max(self._past_peak_bytes, peak),
            restarts=self._restarts,
            waiting=waiting,
            live=loaded or (self._unloaded and not self._stopped),
            loaded=loaded,
            loads=self._loads,
        )

    async def stop(self) -> None:
        """Stop the process and never restart it."""
        self._stopped = True
        self.idle_timer.end()
        self._keeper.cancel()
        # A process that the task was just starting has ended once the task has.
        await asyncio.gather(self._keeper, return_exceptions=True)
        self._live.set()
        self._woken(None)
        await self.process.end()

    async def live_process(self) -> WorkerProcess:
        """Return a running process, after a restart or reload if needed; WorkerUnavailableError."""
        if not self._stopped and self._live.is_set() and not self.process.gone.is_set():
            return self.process
        wait, slot = self._timeouts.restart_wait_seconds, self._spec.slot
        try:
            async with asyncio.timeout(wait):
                while not self._stopped and (not self._live.is_set() or self.process.gone.is_set()):
                    # The process may have died so recently that ``_keep`` has not run yet.
                    self._live.clear()
                    await (self._wake() if self._unloaded else self._live.wait())
        except TimeoutError:
            raise WorkerUnavailableError(
                f"the worker of slot {slot!r} did not come back within {wait:g} s",
                advice="See `flotilla-agent status` for why it does not start.",
            ) from None
        if self._stopped:
            raise WorkerUnavailableError(f"the worker of slot {slot!r} was stopped")
        return self.process

    async def _keep(self) -> None:
        backoff = Backoff(self._timeouts.backoff_first_seconds, self._timeouts.backoff_most_seconds)
        while True:
            started = time.monotonic()
            await self.process.gone.wait()
            self._live.clear()
            self._past_peak_bytes = max(self._past_peak_bytes, self.process.memory_bytes()[1])
            if self._unloaded:
                await self._load_when_wanted()
            else:
                self._note_death()
                self._changed()
                # A crash during a request belongs to the request: it must not delay the restart
                # for all others. A process that dies by itself backs off, unless it ran well.
                ran_seconds = time.monotonic() - started
                if self.process.was_busy or ran_seconds > self._timeouts.stable_after_seconds:
                    backoff.reset()
                await self._restart(backoff)
            self._live.set()
            self._changed()
            self._woken(None)

    def _note_death(self) -> None:
        self._restarts += 1
        self._starved |= self.process.ran_out_of_memory
        log.warning(
            "worker_died slot=%s pid=%d restarts=%d how=%s",
            self._spec.slot,
            self.process.pid,
            self._restarts,
            ascii(self.process.describe_end()),
        )

    async def _restart(self, backoff: Backoff) -> None:
        while True:
            await asyncio.sleep(backoff.next_seconds())
            try:
                self.process = await self._start()
            except LoadFailedError as error:
                log.warning(
                    "worker_restart_failed slot=%s reason=%s error=%s",
                    self._spec.slot,
                    error.reason,
                    ascii(str(error)),
                )
            else:
                return

    async def _start(self) -> WorkerProcess:
        process = WorkerProcess(self._spec)
        await process.start(self._timeouts, self._threads())
        return process

    def _unload(self) -> None:
        if not self._live.is_set():
            # It is being restarted after a crash.
            self.idle_timer.begin()
            return
        log.info("worker_unloaded slot=%s pid=%d", self._spec.slot, self.process.pid)
        self._unloaded = True
        self._live.clear()
        self.process.kill()

    async def _wake(self) -> None:
        """Reload an unloaded model; WorkerUnavailableError if that fails now."""
        if self._waking is None:
            self._waking = asyncio.get_running_loop().create_future()
            self._wanted.set()
        # Shielded: other callers may wait for the same reload, and a later one can use it.
        error = await asyncio.shield(self._waking)
        if error is not None:
            raise WorkerUnavailableError(
                f"slot {self._spec.slot!r} could not be loaded again: {error}", advice=LOAD_AGAIN
            )

    def _woken(self, error: LoadFailedError | None) -> None:
        if self._waking is not None:
            self._waking.set_result(error)
            self._waking = None

    async def _load_when_wanted(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                self._check_room()
                self.process = await self._start()
            except LoadFailedError as error:
                log.warning(
                    "worker_not_reloaded slot=%s error=%s", self._spec.slot, ascii(str(error))
                )
                self._woken(error)
            else:
                self._unloaded = False
                self._loads += 1
                log.info("worker_reloaded slot=%s pid=%d", self._spec.slot, self.process.pid)
                return

    def _check_room(self) -> None:
        wanted, room = self._past_peak_bytes, self._room()
        if wanted > room:
            raise LoadFailedError(
                f"the model needs {wanted >> 20} MiB; {room >> 20} MiB are free",
                reason="out_of_memory",
            )
