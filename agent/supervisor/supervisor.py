"""The registry of all workers: start, stop, and stop them all at the end."""

import asyncio
import logging
import sys
from collections.abc import Callable

from agent.supervisor.lifecycle import Lifecycle
from agent.supervisor.process import WorkerProcess
from agent.supervisor.spec import WorkerSpec, WorkerTimeouts
from agent.supervisor.worker import Worker
from runtimes.processor.threads import compute_threads

log = logging.getLogger(__name__)


class Supervisor:
    """Owns every worker of this daemon. ``threads`` returns the number for one large model.

    ``free_bytes`` returns the free memory of the box, ``budget_bytes`` the memory that all workers
    together may use. ``changed`` is called after a worker died and after it runs again.
    """

    def __init__(
        self,
        *,
        timeouts: WorkerTimeouts | None = None,
        threads: Callable[[], int] = compute_threads,
        free_bytes: Callable[[], int] = lambda: sys.maxsize,
        budget_bytes: Callable[[], int] = lambda: sys.maxsize,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._changed = changed
        self._free_bytes = free_bytes
        self._budget_bytes = budget_bytes
        self._timeouts = timeouts or WorkerTimeouts()
        self._threads = threads
        self._workers: set[Worker] = set()

    async def start(self, spec: WorkerSpec) -> Worker:
        """Start a worker and load its model; LoadFailedError with the reason."""
        process = WorkerProcess(spec)
        await process.start(self._timeouts, self._threads())
        lifecycle = Lifecycle(
            spec, process, self._timeouts, self._threads, self.room, changed=self._changed
        )
        worker = Worker(spec, lifecycle)
        self._workers.add(worker)
        log.info(
            "worker_started slot=%s variant=%s pid=%d", spec.slot, spec.variant.name, worker.pid
        )
        return worker

    def room(self) -> int:
        """Return the bytes that further workers may use: of the budget, and of the free memory.

        Loaded workers count with their peak, because they may need as much again.
        """
        stats = [worker.stats() for worker in self._workers]
        taken = sum(each.peak_memory_bytes for each in stats if each.loaded)
        return max(0, min(self._free_bytes(), self._budget_bytes() - taken))

    async def stop(self, worker: Worker) -> None:
        """Stop a worker for good; idempotent."""
        self._workers.discard(worker)
        await worker.stop()
        log.info("worker_stopped slot=%s variant=%s", worker.spec.slot, worker.spec.variant.name)

    def unsupervised(self) -> list[str]:
        """Return the slots of workers whose restart task has ended; empty unless there is a bug."""
        return sorted(worker.spec.slot for worker in self._workers if worker.unsupervised)

    async def close(self) -> None:
        """Stop every worker."""
        await asyncio.gather(*(self.stop(worker) for worker in tuple(self._workers)))
