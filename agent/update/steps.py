"""The side effects of the update machine: one method per state that does work.

A step returns the event that happened, or raises StepFailedError. Before ``switching`` a step may
be cancelled at any point, by a newer assignment or by the end of the process.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

import msgspec

from agent.backoff import Backoff
from agent.errors import (
    ChunkMissingError,
    DiskFullError,
    DownloadError,
    LoadFailedError,
    SourceUnavailableError,
)
from agent.journal import Assignment, HeldRelease, Journal, SlotPlan
from agent.power.energy import PowerMeter
from agent.selection import Decision, Knowledge, Measurement, rank_all
from agent.serving import Deployment, Serving
from agent.storage.download import Downloader
from agent.storage.file_store import FileStore
from agent.storage.transfer import ChunkSource, Transfer
from agent.supervisor import Worker
from agent.update.faults import TRANSIENT, reason_of
from agent.update.job import StepFailedError, UpdateJob
from agent.update.keeper import Keeper
from agent.update.loading import Loader, files_of
from agent.update.machine import Event, State
from agent.update.measurements import MeasurementStore
from agent.update.proving import check_health, prove_slots
from artifact.device_facts import DeviceFacts, hardware_class
from artifact.errors import (
    ArtifactError,
    ClockSetBackError,
    ExpiredMetadataError,
    InvalidManifestError,
)
from artifact.manifest import MAX_MANIFEST_BYTES, Component
from artifact.trust.statements import (
    Directive,
    VerifiedRelease,
    check_agreement,
    check_directive,
    check_manifest,
)

log = logging.getLogger(__name__)

T = TypeVar("T")
SOAK_LOOK_SECONDS: Final = 0.05


class Verifier(Protocol):
    """Verifies metadata of both repositories (agent.link.metadata)."""

    async def directive(self, assignment: Assignment) -> Directive:
        """Return what the director signed for this device; UntrustedError."""

    async def resolve(self, reference: str) -> VerifiedRelease:
        """Return the publisher's release; UntrustedError, or SourceUnavailableError if offline."""


@dataclass(frozen=True)
class Steps:
    """The side effects of the update machine and the parts of the agent they act on."""

    journal: Journal
    store: FileStore
    source: ChunkSource
    downloader: Downloader
    verifier: Verifier
    loader: Loader
    keeper: Keeper
    serving: Serving
    facts: Callable[[], DeviceFacts]
    meter: PowerMeter | None
    # Called when the status has changed.
    changed: Callable[[], None]
    measurements: MeasurementStore = field(default_factory=MeasurementStore)
    backoff: Callable[[], Backoff] = lambda: Backoff(0.5, 15)
    clock: Callable[[], float] = time.monotonic
    # Longest wait without progress for the end of a device fault (agent.update.faults), before the
    # update is rejected for it.
    patience_seconds: float = 0.0
    patience_backoff: Callable[[], Backoff] = lambda: Backoff(5, 60)

    def of(self, state: State) -> Callable[[UpdateJob], Awaitable[Event]]:
        """Return the step of a state; KeyError for states without one."""
        return {
            State.VERIFYING: self.verify,
            State.PLANNING: self.plan,
            State.FETCHING: self.fetch,
            State.STAGING: self.stage,
            State.PROBATION: self.prove,
            State.SWITCHING: self.switch,
            State.SOAKING: self.soak,
            State.ROLLING_BACK: self.roll_back,
        }[state]

    async def verify(self, job: UpdateJob) -> Event:
        """Verify that director and publisher agree on the release, and its manifest's digest."""
        try:
            return await self._wait_out_faults(job, lambda: self._verify(job))
        except (ExpiredMetadataError, ClockSetBackError) as error:
            raise StepFailedError(reason_of(error), str(error)) from error
        except InvalidManifestError as error:
            raise StepFailedError("invalid_manifest", str(error)) from error
        except ArtifactError as error:
            raise StepFailedError("untrusted", str(error)) from error
        except ChunkMissingError as error:
            raise StepFailedError("manifest_missing", str(error)) from error

    async def _wait_out_faults(self, job: UpdateJob, work: Callable[[], Awaitable[T]]) -> T:
        """Do ``work``, and repeat it while a fault of the device or of its link is in the way.

        None of them is the release's fault, and they often end within minutes: a box without a
        battery gets the time from the network after it starts, an operator clears the disk. Raises
        the fault once it has lasted for ``patience_seconds`` without a byte received.
        """
        backoff = self.patience_backoff()
        received, since = job.progress.received_bytes, self.clock()
        try:
            while True:
                try:
                    return await work()
                except TRANSIENT as error:
                    reason = reason_of(error)
                    job.device_faults[reason] += 1
                    if job.progress.received_bytes > received:
                        # A slow link that delivers something is waited for.
                        received, since = job.progress.received_bytes, self.clock()
                        backoff.reset()
                    if self.clock() - since >= self.patience_seconds:
                        raise
                    log.warning("device_fault_waits reason=%s error=%s", reason, ascii(str(error)))
                    job.waiting = f"{error} {error.advice}"
                    self.changed()
                    await asyncio.sleep(backoff.next_seconds())
        finally:
            job.waiting = ""

    async def _verify(self, job: UpdateJob) -> Event:
        wanted = job.assignment
        directive = await self.verifier.directive(wanted)
        check_directive(directive, wanted.generation, wanted.release)
        if not wanted.release:
            return Event.DONE
        pointers = self.journal.pointers()
        held = pointers.proven(wanted.release)
        # The same name with another manifest is another release: it was never proven here.
        if held is not None and held.manifest_sha256 != wanted.manifest_sha256:
            held = None
        live = self.serving.deployment
        if held is not None and live is not None and live.release.reference == wanted.release:
            job.held = held
            return Event.UNCHANGED
        verified = await self._resolve(wanted.release)
        if verified.sha256 != wanted.manifest_sha256:
            raise StepFailedError(
                "manifest_mismatch",
                f"the publisher signed {verified.sha256} for {wanted.release}, the control "
                f"plane assigned {wanted.manifest_sha256}",
            )
        check_agreement(directive, verified, hardware_class(self.facts()))
        manifest = held.manifest if held else await self._fetch_manifest(verified, job)
        check_manifest(verified, manifest)
        job.proven = held is not None
        job.held = held or HeldRelease(
            reference=wanted.release, manifest=manifest, manifest_sha256=verified.sha256
        )
        return Event.DONE

    async def _resolve(self, reference: str) -> VerifiedRelease:
        return await self._when_reachable(lambda: self.verifier.resolve(reference))

    async def _fetch_manifest(self, verified: VerifiedRelease, job: UpdateJob) -> bytes:
        async def fetch() -> bytes:
            transfer = Transfer(self.source, job.progress)
            return await transfer.whole(bytes.fromhex(verified.sha256), MAX_MANIFEST_BYTES)

        return await self._when_reachable(fetch)

    async def _when_reachable(self, call: Callable[[], Awaitable[T]]) -> T:
        """Retry until the server answers; a newer assignment or the end of the process cancels."""
        backoff = self.backoff()
        while True:
            try:
                return await call()
            except SourceUnavailableError as error:
                log.info("server_unreachable error=%s", ascii(str(error)))
                await asyncio.sleep(backoff.next_seconds())

    async def plan(self, job: UpdateJob) -> Event:
        """Select the variant that each slot tries first."""
        decisions = self._decisions(job)
        if job.proven and self._still_fits(job, decisions):
            return Event.DONE
        job.proven = False
        for decision in decisions:
            variant = decision.next_candidate()
            plan = SlotPlan(decision=decision, variant=variant or "", counts_process=True)
            job.set_plan(decision.slot, plan)
            if variant is None:
                raise StepFailedError("no_variant_fits", f"slot {decision.slot}: {decision.reason}")
        return Event.DONE

    def _decisions(self, job: UpdateJob) -> list[Decision]:
        if job.release is None:
            return []
        known = [self._known(component) for component in job.components]
        return rank_all(job.components, job.release.selection, known)

    def _known(self, component: Component) -> Knowledge:
        facts = self.facts()
        return Knowledge(
            facts,
            self.measurements.measured(facts),
            self.measurements.priors(component.model.reference),
            metered=self.meter is not None,
        )

    def _still_fits(self, job: UpdateJob, decisions: Sequence[Decision]) -> bool:
        """Return True if a proven release is complete on disk and within the present budget."""
        for decision in decisions:
            plan = job.plan(decision.slot)
            now, then = decision.candidate(plan.variant), plan.decision.candidate(plan.variant)
            if now.bucket == "excluded" or now.context_length != then.context_length:
                return False
        return all(self.store.has(file) for file in files_of(job.held))

    async def fetch(self, job: UpdateJob) -> Event:
        """Download every file of the selected variants."""
        try:
            await self._wait_out_faults(job, lambda: self._fetch(job))
        except DownloadError as error:
            raise StepFailedError(error.reason, f"{error} {error.advice}") from error
        return Event.DONE

    async def _fetch(self, job: UpdateJob) -> None:
        try:
            await self.downloader.fetch(files_of(job.held), job.progress, self.changed)
        except DiskFullError:
            # Superseded assignments may have left files.
            if not await self.clear_store():
                raise
            await self.downloader.fetch(files_of(job.held), job.progress, self.changed)

    async def stage(self, job: UpdateJob) -> Event:
        """Start a worker for every slot, beside the live ones if memory allows."""
        waiting = [
            component for component in job.components if not self._has_worker(job, component)
        ]
        plans = [job.plan(component.slot) for component in waiting]
        needed = [plan.decision.candidate(plan.variant).predicted_memory_bytes for plan in plans]
        if await self.loader.make_room(sum(needed)):
            job.note("the live release was drained first because memory does not hold both")
        for component in waiting:
            if component.slot in job.workers:
                await self.loader.stop({component.slot: job.workers.pop(component.slot)})
            plan = job.plan(component.slot)
            assert job.release is not None  # noqa: S101 - a component is of a release
            try:
                worker = await self.loader.start(job.release, component, plan)
            except LoadFailedError as error:
                return self._try_another(job, component, error)
            job.workers[component.slot] = worker
        return Event.DONE

    def _has_worker(self, job: UpdateJob, component: Component) -> bool:
        worker = job.workers.get(component.slot)
        return worker is not None and worker.spec.variant.name == job.plan(component.slot).variant

    def _try_another(self, job: UpdateJob, component: Component, error: LoadFailedError) -> Event:
        plan = job.plan(component.slot)
        decision = plan.decision.with_failure(plan.variant, f"did not load: {error}")
        following = decision.next_candidate()
        if following is None:
            job.set_plan(component.slot, msgspec.structs.replace(plan, decision=decision))
            raise StepFailedError(f"load_{error.reason}", f"{error} {error.advice}")
        job.set_plan(
            component.slot,
            msgspec.structs.replace(plan, decision=decision, variant=following),
        )
        return Event.ANOTHER

    async def prove(self, job: UpdateJob) -> Event:
        """Check and measure the candidate; a release that has served here only has to answer."""
        if not job.proven:
            return await prove_slots(job, self.meter, self._keep)
        await check_health(job)
        return Event.DONE

    async def _keep(self, measurement: Measurement) -> None:
        await asyncio.to_thread(self.measurements.add, self.facts(), measurement)

    async def switch(self, job: UpdateJob) -> Event:
        """Make the candidate live; requests wait rather than fail."""
        started = self.clock()
        if job.release is None:
            await self.serving.clear()
            job.note("no release serves, as assigned")
            return Event.DONE
        for worker in job.workers.values():
            _require_unbroken(worker)
        prepared = self.clock() - started
        report = await self.serving.swap(Deployment(job.release, dict(job.workers)))
        job.switch_seconds = prepared + report.switch_seconds
        if report.cut_requests:
            job.note(f"{report.cut_requests} requests were cut off after the drain timeout")
        return Event.DONE

    async def soak(self, job: UpdateJob) -> Event:
        """Watch the workers for the release's soak time; a crash fails the update."""
        seconds = job.release.probation.soak_seconds if job.release else 0.0
        deadline = self.clock() + seconds
        while True:
            for worker in job.workers.values():
                _require_unbroken(worker)
            remaining = deadline - self.clock()
            if remaining <= 0:
                return Event.DONE
            await asyncio.sleep(min(remaining, SOAK_LOOK_SECONDS))

    async def roll_back(self, job: UpdateJob) -> Event:
        """Serve current again, else last_good."""
        current, live = self.journal.pointers().current, self.serving.deployment
        if current is None:
            await self.serving.clear()
            return Event.DONE
        if live is not None and live.release.reference == current.reference:
            return Event.DONE
        served = await self.keeper.serve()
        if self.keeper.problem:
            job.note(f"after the rollback {self.keeper.problem}")
        if served is None:
            raise StepFailedError(job.reason or "rollback_failed", "the agent keeps retrying")
        return Event.DONE

    async def abandon(self, job: UpdateJob) -> None:
        """Stop the candidate's workers and serve current again if it was drained for them."""
        live = self.serving.deployment
        serving = set(live.workers.values()) if live else set()
        await self.loader.stop(
            {slot: worker for slot, worker in job.workers.items() if worker not in serving}
        )
        job.workers.clear()
        if live is not None or self.journal.pointers().current is None:
            return
        if await self.keeper.serve() is None:
            # Fail the requests that were held for the candidate, and hold no more.
            await self.serving.clear()
        if self.keeper.problem:
            job.note(f"after the update {self.keeper.problem}")

    async def clear_store(self) -> int:
        """Delete files that no pointer needs; return the freed bytes."""
        pointers = self.journal.pointers()
        kept = {
            file.sha256
            for held in (pointers.candidate, pointers.current, pointers.last_good)
            for file in files_of(held)
        }
        freed = await asyncio.to_thread(self.store.keep_only, kept)
        log.info("store_cleared freed_bytes=%d kept_files=%d", freed, len(kept))
        return freed


def _require_unbroken(worker: Worker) -> None:
    stats = worker.stats()
    if worker.ran_out_of_memory:
        raise StepFailedError(
            "out_of_memory_in_soak", f"the worker of slot {worker.spec.slot} ran out of memory"
        )
    if stats.restarts or not stats.live:
        raise StepFailedError(
            "crashed_in_soak", f"the worker of slot {worker.spec.slot} crashed after loading"
        )
