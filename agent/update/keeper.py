"""Keep a verified release serving: current, else last_good, retrying with backoff.

If ``current`` does not load, ``last_good`` serves. If neither loads, both are retried without end
at a bounded backoff. ``current`` is replaced for good only after a failure that a retry cannot fix.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from agent.backoff import Backoff
from agent.errors import JournalError, LoadFailedError
from agent.journal import HeldRelease, Journal, Pointers, reference_of
from agent.serving import Serving
from agent.update.loading import Loader

log = logging.getLogger(__name__)

# Reasons of LoadFailedError that a retry may fix: too little memory, a slow disk, a killed worker,
# and errors of an unknown cause. All others, such as an altered file, fail the same way again.
TRANSIENT_REASONS: Final = frozenset(
    {"crashed", "internal_error", "not_started", "out_of_memory", "timed_out"}
)


class Keeper:
    """Loads the release that should serve. Whoever changes the deployment holds ``lock``."""

    def __init__(
        self,
        journal: Journal,
        loader: Loader,
        serving: Serving,
        *,
        changed: Callable[[], None],
        backoff: Callable[[], Backoff] = lambda: Backoff(2, 300),
    ) -> None:
        self.lock = asyncio.Lock()
        # Why current does not serve, for people; empty while it serves.
        self.problem = ""
        # True while last_good serves in place of current.
        self.fell_back = False
        # The release whose files are missing or altered; empty if there is none.
        self.damaged = ""
        self._journal = journal
        self._loader = loader
        self._serving = serving
        self._changed = changed
        self._backoff = backoff
        self._needed = asyncio.Event()

    async def serve(self, *, verify_files: bool = False) -> HeldRelease | None:
        """Load ``current``, else ``last_good``; return the one that serves, or None.

        If ``current`` can never load again, the pointers in the journal move, so the caller must
        be the one that writes them. ``verify_files`` hashes all files first.
        """
        served = await self._serve_first(verify_files=verify_files)
        pointers = self._journal.pointers()
        if served is None or served == pointers.current or self._needed.is_set():
            return served
        # A permanent failure: last_good becomes current, and there is no older one to fall back to.
        try:
            fallback = msgspec.structs.replace(pointers, current=served, last_good=None)
            await asyncio.to_thread(self._journal.record, pointers=fallback)
        except JournalError as error:
            # Not fatal: the release serves, and the next start comes to the same result.
            log.warning("fallback_not_recorded error=%s", ascii(str(error)))
        else:
            self.fell_back = False
        return served

    async def _serve_first(self, *, verify_files: bool = False) -> HeldRelease | None:
        pointers = self._journal.pointers()
        current = pointers.current
        if current is None:
            return None
        failures: list[LoadFailedError] = []
        for held in (current, pointers.last_good):
            if held is None:
                continue
            failure = await self._failure_of(held, verify_files=verify_files)
            if failure is None:
                self._settle(held, failures)
                return held
            failures.append(failure)
            if failure.reason == "damaged" and held is current:
                self.damaged = held.reference
        self._request_retry(f"no release serves: {_describe_failure(current, failures)}")
        return None

    async def _failure_of(self, held: HeldRelease, *, verify_files: bool) -> LoadFailedError | None:
        """Try to serve a release; return the failure, None on success."""
        try:
            if verify_files:
                await self._loader.check_files(held)
            await self._loader.serve(held)
        except LoadFailedError as error:
            log.warning("release_not_loaded release=%s error=%s", held.reference, ascii(str(error)))
            return error
        except Exception as error:
            log.exception("release_not_loaded release=%s", held.reference)
            return LoadFailedError(f"{type(error).__name__}: {error}", reason="internal_error")
        return None

    async def run(self, may_act: Callable[[], bool]) -> None:
        """Retry while current does not serve. ``may_act`` is False while an update is switching."""
        backoff = self._backoff()
        while True:
            if not self._needed.is_set():
                backoff.reset()
                await self._needed.wait()
            await asyncio.sleep(backoff.next_seconds())
            async with self.lock:
                if not may_act():
                    continue
                try:
                    await self._try_again()
                except Exception:
                    # An unknown failure must not end the retries.
                    log.exception("retry_failed")
            self._changed()

    def serving_reference(self, pointers: Pointers) -> str:
        """Return the serving release, never a candidate in its soak; empty if none serves."""
        if not self.problem:
            return reference_of(pointers.current)
        live = self._serving.deployment
        return live.release.reference if live else ""

    def check_current(self) -> None:
        """Stop the retries if current serves, or if no release should serve."""
        current, live = self._journal.pointers().current, self._serving.deployment
        if current is None or (live is not None and live.release.reference == current.reference):
            self._needed.clear()
            self.problem, self.fell_back = "", False

    async def _try_again(self) -> None:
        self.check_current()
        if not self._needed.is_set():
            return
        current = self._journal.pointers().current
        assert current is not None  # noqa: S101 - retries are requested only for a current release
        if self._serving.deployment is None:
            # An update may be writing the pointers at the same time: leave them as they are.
            await self._serve_first()
        elif self._loader.has_room_for(current):
            # last_good serves meanwhile and is verified: never stop it for a try.
            await self._failure_of(current, verify_files=False)
        self.check_current()

    def _settle(self, served: HeldRelease, failures: list[LoadFailedError]) -> None:
        current = self._journal.pointers().current
        if current is None or served is current:
            self.check_current()
            return
        why = f"{served.reference} serves: {_describe_failure(current, failures)}"
        log.error("fell_back %s", ascii(why))
        self.fell_back = True
        if failures[0].reason in TRANSIENT_REASONS:
            self._request_retry(why)
        else:
            self._needed.clear()
            self.problem = why

    def _request_retry(self, problem: str) -> None:
        self.problem = problem
        self._needed.set()
        self._changed()


def _describe_failure(current: HeldRelease, failures: list[LoadFailedError]) -> str:
    return f"{reference_of(current)} did not load: {failures[0]}"
