"""Never without a verified model: what should serve, and trying again until it does.

What serves should be ``current``. When it does not load, ``last_good`` serves, and when that does
not load either nothing does: both are tried again, for ever, with a bounded backoff. ``current`` is
given up for good only for a failure that no second try mends.
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

# Reasons of LoadFailedError: too little memory, a slow disk, a worker that was killed. All else,
# such as an altered file or a format that the engine refuses, fails alike every time. What is not
# understood may pass.
TRANSIENT_REASONS: Final = frozenset(
    {"crashed", "internal_error", "not_started", "out_of_memory", "timed_out"}
)


class Keeper:
    """One per daemon. ``lock`` is held by whoever changes what serves."""

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
        # Why current does not serve, in words; empty while it does.
        self.problem = ""
        # Whether last_good serves for it.
        self.fell_back = False
        # The release that could not serve as its files were altered or gone; empty for none.
        self.damaged = ""
        self._journal = journal
        self._loader = loader
        self._serving = serving
        self._changed = changed
        self._backoff = backoff
        self._needed = asyncio.Event()

    async def serve(self, *, verify_files: bool = False) -> HeldRelease | None:
        """Load what served before, or failing that what was good before it; None when neither.

        The pointers follow when ``current`` can never load again, so this is for whoever writes
        them. With ``verify_files`` all files are hashed first.
        """
        served = await self._serve_first(verify_files=verify_files)
        pointers = self._journal.pointers()
        if served is None or served == pointers.current or self._needed.is_set():
            return served
        try:
            fallback = msgspec.structs.replace(pointers, current=served, last_good=None)
            await asyncio.to_thread(self._journal.record, pointers=fallback)
        except JournalError as error:
            # It serves, which is what matters; the next start finds the same again.
            log.warning("fall_not_recorded error=%s", ascii(str(error)))
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
        self._request_retry(f"nothing serves: {_describe_failure(current, failures)}")
        return None

    async def _failure_of(self, held: HeldRelease, *, verify_files: bool) -> LoadFailedError | None:
        """Serve it; why it did not load, whatever that was."""
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
        """Try again whenever something is missing; ``may_act``: no update is switching now."""
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
                    # Whatever it was, the next try comes.
                    log.exception("serving_again_failed")
            self._changed()

    def serving_reference(self, pointers: Pointers) -> str:
        """The reference of what serves; empty for nothing. A candidate that soaks is not meant."""
        if not self.problem:
            return reference_of(pointers.current)
        live = self._serving.deployment
        return live.release.reference if live else ""

    def check_current(self) -> None:
        """Notice that current serves, or that nothing is to serve."""
        current, live = self._journal.pointers().current, self._serving.deployment
        if current is None or (live is not None and live.release.reference == current.reference):
            self._needed.clear()
            self.problem, self.fell_back = "", False

    async def _try_again(self) -> None:
        self.check_current()
        if not self._needed.is_set():
            return
        current = self._journal.pointers().current
        assert current is not None  # noqa: S101 - something is needed
        if self._serving.deployment is None:
            # An update may be writing the pointers meanwhile: they stay as they are.
            await self._serve_first()
        elif self._loader.has_room_for(current):
            # What serves meanwhile is verified too: it is not stopped for a try.
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
