"""Start the workers of releases that are on the disk, and make them live."""

import asyncio
from collections.abc import Mapping
from typing import Final

from agent.errors import LoadFailedError
from agent.journal import HeldRelease, SlotPlan
from agent.selection.memory_prediction import process_bytes
from agent.serving import Deployment, Serving
from agent.storage.file_store import FileStore
from agent.supervisor import Supervisor, Worker, WorkerSpec
from agent.update.job import variant_of
from artifact.manifest import Component, File, Release, decode_release
from runtimes.processor.threads import is_small

SHORT_OF_MEMORY: Final = frozenset({"not_started", "out_of_memory"})
# Beside the model's budget, in plans of agents before 0.2.
OLDER_TOLERANCE_BYTES: Final = 64 << 20


class Loader:
    """Turns held releases into live deployments."""

    def __init__(self, store: FileStore, supervisor: Supervisor, serving: Serving) -> None:
        self._store = store
        self._supervisor = supervisor
        self._serving = serving

    async def start(self, release: Release, component: Component, plan: SlotPlan) -> Worker:
        """Start the worker of one slot; LoadFailedError."""
        variant = variant_of(component, plan.variant)
        shorter = plan.decision.candidate(plan.variant).context_length
        return await self._supervisor.start(
            WorkerSpec(
                slot=component.slot,
                release=release.reference,
                model=component.model,
                variant=variant,
                files={file.name: self._store.path(file) for file in variant.files},
                context_length=shorter or variant.context_length,
                memory_limit_bytes=_memory_limit(plan, variant.runtime),
                idle_unload_seconds=component.idle_unload_seconds,
                adapters={each.name: self._store.path(each.file) for each in component.adapters},
                max_concurrency=component.max_concurrency,
                share_prefixes=component.share_prefixes,
                large_models=_large_models(release),
            )
        )

    async def stop(self, workers: Mapping[str, Worker]) -> None:
        """Stop workers that never went live."""
        for worker in workers.values():
            await self._supervisor.stop(worker)

    async def make_room(self, bytes_needed: int) -> bool:
        """Drain and stop the live deployment if the candidate does not fit beside it.

        Returns True if it was stopped; from then on requests are held.
        """
        if self._serving.deployment is None or bytes_needed <= self._supervisor.room():
            return False
        await self._serving.hold()
        return True

    def has_room_for(self, held: HeldRelease) -> bool:
        """Return True if a held release fits beside the live deployment."""
        plans = held.slots.values()
        needed = [plan.decision.candidate(plan.variant).predicted_memory_bytes for plan in plans]
        return sum(needed) <= self._supervisor.room()

    async def check_files(self, held: HeldRelease) -> None:
        """Hash all files of a release; delete an altered one and raise LoadFailedError."""
        for file in files_of(held):
            if not await asyncio.to_thread(self._store.drop_unless_sound, file):
                raise LoadFailedError(
                    f"a file of {held.reference} is missing or altered: {file.sha256}",
                    reason="damaged",
                    advice="Check the kernel log for disk errors; roll the release out again.",
                )

    async def serve(self, held: HeldRelease) -> None:
        """Load a held release and make it live; on LoadFailedError the live one keeps serving."""
        release = decode_release(held.manifest)
        workers: dict[str, Worker] = {}
        try:
            for component in release.components:
                plan = held.slots[component.slot]
                workers[component.slot] = await self.start(release, component, plan)
        except BaseException as error:
            # Also on cancellation: no half-loaded release may hold memory.
            await self.stop(workers)
            if isinstance(error, LoadFailedError) and error.reason not in SHORT_OF_MEMORY:
                # An altered file can show as any other failure: tell the two apart by its digest.
                await self.check_files(held)
            raise
        await self._serving.swap(Deployment(release, workers))


def _large_models(release: Release) -> int:
    """Count the components that compute with several threads, in any of their variants."""
    largest = (
        max(variant.size_bytes for variant in component.model.variants)
        for component in release.components
    )
    return sum(not is_small(size) for size in largest)


def _memory_limit(plan: SlotPlan, runtime: str) -> int:
    """Return the limit of a slot's process.

    A plan of an older agent bounds the model alone: without the process and the tolerance of that
    time the release that serves would not load after an upgrade of the agent.
    """
    budget = plan.decision.memory_budget_bytes
    if plan.counts_process or not budget:
        return budget
    return budget + process_bytes(runtime) + OLDER_TOLERANCE_BYTES


def files_of(held: HeldRelease | None) -> list[File]:
    """Return the files of the planned variants of a held release and of its adapters."""
    if held is None:
        return []
    return [
        file
        for component in decode_release(held.manifest).components
        if component.slot in held.slots
        for file in (
            *variant_of(component, held.slots[component.slot].variant).files,
            *(adapter.file for adapter in component.adapters),
        )
    ]
