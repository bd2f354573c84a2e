"""Run assignments through the update machine: store every state on entering it, then act."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import msgspec

from agent.errors import DiskFailedError, JournalError
from agent.journal import (
    Assignment,
    Journal,
    Pointers,
    Receipt,
    Update,
    reference_of,
)
from agent.update.commit import commit
from agent.update.job import StepFailedError, UpdateJob, resume_job
from agent.update.machine import (
    OUTCOMES,
    Event,
    State,
    is_loop,
    next_state,
    takes_assignments,
)
from agent.update.steps import Steps

log = logging.getLogger(__name__)

JOURNAL_RETRY_SECONDS: Final = 5.0
MAX_DETAIL_CHARACTERS: Final = 2000
MAX_LOGGED_CHARACTERS: Final = 300
# In these states the update does not touch the live release, so the keeper may act.
BEFORE_STAGING: Final = frozenset({State.IDLE, State.VERIFYING, State.PLANNING, State.FETCHING})
NO_ASSIGNMENT: Final = Assignment(generation=0, release="", manifest_sha256="")


@dataclass(frozen=True, slots=True)
class Status:
    """Progress of the assignment, for the control plane and for `flotilla-agent status`."""

    generation: int
    state: str
    release: str
    detail: str
    bytes_done: int
    bytes_total: int
    current_release: str
    last_good_release: str
    # Faults of the device during the assignment, by reason.
    device_faults: dict[str, int] = field(default_factory=dict)


class UpdateEngine:
    """The update loop, one per daemon. Call ``assign`` at any time; ``run`` does the work."""

    def __init__(
        self,
        journal: Journal,
        steps: Steps,
        *,
        changed: Callable[[], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._journal = journal
        self._steps = steps
        self._changed = changed
        self._now = now
        self._keeper = steps.keeper
        self._update = journal.update() or Update(assignment=NO_ASSIGNMENT, state=State.IDLE)
        self._job = resume_job(self._update, journal.pointers())
        self._wanted: Assignment | None = None
        # The last write error of the journal; empty while writes succeed.
        self._journal_problem = ""
        self._arrived = asyncio.Event()

    @property
    def state(self) -> State:
        """State of the present assignment; ``idle`` without one."""
        return State(self._update.state)

    def assign(self, assignment: Assignment) -> None:
        """Accept an assignment if its generation is newer than all seen so far; idempotent."""
        newest = self._wanted or self._update.assignment
        if assignment.generation <= newest.generation:
            return
        self._wanted = assignment
        self._arrived.set()

    def is_outdated(self, assignment: Assignment) -> bool:
        """Check for an assignment from before one that the device took on.

        An older generation, or the same one with another release: the server lost assignments, as
        after a restore. It continues above this device's generation once it has read Hello.
        """
        newest = self._wanted or self._update.assignment
        if assignment.generation == newest.generation:
            return assignment.release != newest.release
        return assignment.generation < newest.generation

    def status(self) -> Status:
        """Return the present progress."""
        update, progress, pointers = self._update, self._job.progress, self._journal.pointers()
        return Status(
            generation=update.assignment.generation,
            state=update.state,
            release=update.assignment.release,
            detail=(
                self._journal_problem or self._keeper.problem or self._job.waiting or update.detail
            ),
            bytes_done=progress.done_bytes,
            bytes_total=progress.total_bytes,
            current_release=self._keeper.serving_reference(pointers),
            last_good_release=reference_of(pointers.last_good),
            device_faults=dict(self._job.device_faults),
        )

    async def run(self) -> None:
        """Serve the current release, finish an interrupted update, then follow assignments."""
        await self._serve_current()
        await self._advance(Event.RESTARTED)
        keeper_task = asyncio.create_task(self._keeper.run(lambda: self.state in BEFORE_STAGING))
        try:
            await self._follow()
        finally:
            keeper_task.cancel()
            await asyncio.gather(keeper_task, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            state = self.state
            if self._wanted is not None and takes_assignments(state):
                await self._begin(self._wanted)
            elif state is State.IDLE and self._is_damaged():
                damaged = self._update.assignment
                detail = f"files of {damaged.release} are missing or altered; fetching them again"
                await self._begin(damaged, detail)
            elif state is State.IDLE:
                # Clear before the check: an assignment that arrives between the two sets it again.
                self._arrived.clear()
                if self._wanted is None:
                    await self._arrived.wait()
            elif state in OUTCOMES:
                # After a rollback the same release may be assigned again: keep its files.
                if state in {State.COMMITTED, State.REJECTED}:
                    await self._clear_store()
                await self._advance(Event.DONE)
            else:
                event = await self._act(state)
                if event is not None:
                    await self._advance(event)

    def _is_damaged(self) -> bool:
        """Check once per damage whether files of the last assignment are missing or altered.

        The caller repeats that assignment, which director and publisher must still sign.
        """
        damaged, self._keeper.damaged = self._keeper.damaged, ""
        return bool(damaged) and damaged == self._update.assignment.release

    async def _clear_store(self) -> None:
        try:
            await self._steps.clear_store()
        except DiskFailedError as error:
            # Not fatal: the live release needs no free space, and the next assignment retries.
            log.warning("store_not_cleared error=%s", ascii(str(error)))

    async def _serve_current(self) -> None:
        """Serve the current release before anything else, without the network."""
        repaired = self._journal.repaired
        if repaired:
            self._job.note(f"the journal was repaired: {repaired}")
        await self._keeper.serve(verify_files=bool(repaired))
        if self._keeper.problem:
            self._job.note(self._keeper.problem)
        if repaired and self.state is State.IDLE:
            detail = self._job.detail[:MAX_DETAIL_CHARACTERS]
            update = msgspec.structs.replace(self._update, detail=detail)
            await self._store(update, self._journal.pointers())

    async def _begin(self, assignment: Assignment, detail: str = "") -> None:
        """Start a newer assignment and abandon the candidate of the older one."""
        if self.state is not State.IDLE:
            log.info(
                "assignment_superseded generation=%d by=%d state=%s",
                self._update.assignment.generation,
                assignment.generation,
                self.state,
            )
            await self._abandon()
        self._wanted = None
        self._job = UpdateJob(assignment, detail=detail)
        entered = Update(
            assignment=assignment,
            detail=detail,
            state=next_state(self.state, Event.ASSIGNED),
            stores={State.VERIFYING: 1},
        )
        await self._store(
            entered, msgspec.structs.replace(self._journal.pointers(), candidate=None)
        )
        self._log(entered)

    async def _act(self, state: State) -> Event | None:
        """Run the step of a state; None if a newer assignment interrupted it."""
        step = asyncio.ensure_future(self._work(state))
        arrival = asyncio.ensure_future(self._arrived.wait())
        try:
            # From ``switching`` on a step always runs to its end: a half-switched box has no
            # defined release.
            if takes_assignments(state):
                self._arrived.clear()
                if self._wanted is not None:
                    return None
                await asyncio.wait({step, arrival}, return_when=asyncio.FIRST_COMPLETED)
                if self._wanted is not None:
                    return None
            return await step
        except StepFailedError as error:
            self._fail(error.reason, str(error))
        except Exception as error:
            log.exception("step_failed state=%s", state)
            self._fail("internal_error", f"{type(error).__name__}: {error}")
        finally:
            arrival.cancel()
            step.cancel()
            await asyncio.gather(step, arrival, return_exceptions=True)
        return Event.FAILED

    async def _work(self, state: State) -> Event:
        # From ``staging`` on steps load models: exclude the keeper, which does so too.
        if state in BEFORE_STAGING:
            return await self._steps.of(state)(self._job)
        async with self._keeper.lock:
            return await self._steps.of(state)(self._job)

    async def _abandon(self) -> None:
        async with self._keeper.lock:
            await self._steps.abandon(self._job)

    def _fail(self, reason: str, detail: str) -> None:
        # The first failure is the reason; failures of the rollback only add detail.
        self._job.reason = self._job.reason or reason
        self._job.note(detail)

    async def _advance(self, event: Event) -> None:
        """Enter the next state: on disk first, then in memory."""
        state = next_state(self.state, event)
        if event is Event.RESTARTED and state is State.IDLE and self.state is State.IDLE:
            return
        if event is Event.RESTARTED and self.state in {State.SWITCHING, State.SOAKING}:
            # A restart is a fault of the box, not of the release.
            self._job.device_faults["interrupted"] += 1
            self._fail("interrupted", f"the agent was stopped while {self.state}")
        stores = dict(self._update.stores)
        stores[state] = stores.get(state, 0) + 1
        if is_loop(stores[state]) and state not in OUTCOMES | {State.IDLE}:
            self._fail("loop", f"{state} was entered {stores[state]} times")
            state = next_state(state, Event.FAILED)
        job = self._job
        if state in OUTCOMES and state is not State.COMMITTED:
            # Before the receipt: it reports what serves after the failure.
            await self._abandon()
        pointers = self._pointers_in(state)
        entered = Update(
            assignment=job.assignment,
            state=state,
            stores=stores,
            reason=job.reason,
            detail=job.detail[:MAX_DETAIL_CHARACTERS],
            received_bytes=job.received_bytes + job.progress.received_bytes,
            switch_seconds=job.switch_seconds,
            device_faults=dict(job.device_faults),
        )
        # State, pointers and receipt go into one transaction: no crash can separate them.
        receipt = self._receipt(entered, pointers) if state in OUTCOMES else None
        await self._store(entered, pointers, receipt)
        self._log(entered)

    def _log(self, entered: Update) -> None:
        log.info(
            "update_state generation=%d state=%s release=%s reason=%s detail=%s",
            entered.assignment.generation,
            entered.state,
            entered.assignment.release or "-",
            entered.reason or "-",
            ascii(entered.detail[:MAX_LOGGED_CHARACTERS]),
        )

    def _pointers_in(self, state: State) -> Pointers:
        """Return the pointers to store with ``state``; only ``committed`` moves all three."""
        # Read them again: the keeper may have moved them during a rollback.
        pointers = self._journal.pointers()
        if state is State.COMMITTED:
            return commit(self._job.held, pointers, fell_back=self._keeper.fell_back)
        ended = state in OUTCOMES or state is State.IDLE
        return msgspec.structs.replace(pointers, candidate=None if ended else self._job.held)

    def _receipt(self, update: Update, pointers: Pointers) -> Receipt:
        return Receipt(
            generation=update.assignment.generation,
            release=update.assignment.release,
            outcome=update.state,
            reason=update.reason,
            detail=update.detail,
            received_bytes=update.received_bytes,
            switch_seconds=update.switch_seconds,
            decisions=self._job.decisions(),
            checks=self._job.checks(),
            finished_at=self._now(),
            current_release=self._keeper.serving_reference(pointers),
            last_good_release=reference_of(pointers.last_good),
            device_faults=update.device_faults,
        )

    async def _store(
        self, update: Update, pointers: Pointers, receipt: Receipt | None = None
    ) -> None:
        """Write to the journal and retry until it succeeds; the live release keeps serving.

        The in-memory state changes only after the write, so that a crash never finds the box
        ahead of its journal.
        """
        while True:
            try:
                await asyncio.to_thread(
                    self._journal.record, update=update, pointers=pointers, receipt=receipt
                )
                break
            except JournalError as error:
                log.error("journal_not_written error=%s", ascii(str(error)))  # noqa: TRY400 - it is tried again
                self._journal_problem = f"{error} {error.advice}"
                self._changed()
                await asyncio.sleep(JOURNAL_RETRY_SECONDS)
        self._journal_problem = ""
        self._update = update
        self._keeper.check_current()
        self._changed()
