"""The live deployment, its routes, and the swap to the next deployment.

A request holds a visit to the deployment that answers it. A swap directs new visits to the
candidate, waits until the visits of the old deployment have ended, and only then stops its workers,
so that no request fails.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from agent.composition import Split
from agent.errors import ModelRefusedError, NothingServedError, SlotBusyError, UnknownRouteError
from agent.supervisor import Supervisor, Worker
from artifact.manifest import Release, Route, Target

log = logging.getLogger(__name__)

DRAIN_SECONDS = 120.0
HOLD_SECONDS = 60.0
# Of the gateway's 64 places, so that the callers of one slot leave places for other slots.
MOST_PER_SLOT = 48


@dataclass(eq=False, slots=True)
class Visit:
    """A request that a deployment answers.

    ``slot`` is the one whose worker it uses now; empty between the steps of a composed route.
    """

    deployment: "Deployment"
    slot: str = ""

    @contextmanager
    def worker(self, slot: str) -> Iterator[Worker]:
        """Use a slot's worker; raise SlotBusyError if the slot's limit is reached."""
        self.deployment.check_limit(slot)
        self.slot = slot
        try:
            yield self.deployment.workers[slot]
        finally:
            self.slot = ""


@dataclass(eq=False)
class Deployment:
    """A release with a worker for each of its slots, and the requests that it answers."""

    release: Release
    workers: dict[str, Worker]
    routes: dict[str, Route] = field(init=False)
    limits: dict[str, int] = field(init=False)
    visits: set[Visit] = field(init=False, default_factory=set)
    # Set while there are no visits.
    idle: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    # By name and requested version (empty if none).
    _splits: dict[tuple[str, str], Split] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        # Each slot and each adapter is a route too, unless the release names another route so.
        own = [Route(name=slot, slot=slot) for slot in self.workers]
        own += [
            Route(name=f"{part.slot}:{adapter.name}", slot=part.slot, adapter=adapter.name)
            for part in self.release.components
            for adapter in part.adapters
        ]
        self.routes = {route.name: route for route in (*own, *self.release.routes)}
        self.limits = {part.slot: part.max_concurrency for part in self.release.components}
        self.idle.set()

    def route_of(self, name: str) -> Route:
        """Return the route of a name; raise UnknownRouteError."""
        route = self.routes.get(name)
        if route is None:
            known = ", ".join(sorted(self.routes))
            raise UnknownRouteError(
                f"the model {name[:200]!a} is not served here", advice=f"Use one of: {known}."
            )
        return route

    def versions_of(self, route: Route) -> list[str]:
        """Return the versions of the models behind a route, without duplicates."""
        return list(dict.fromkeys(self._version(target) for target in route.targets()))

    def targets_of(self, route: Route, version: str = "") -> Sequence[Target]:
        """Return the targets of a route whose model has this version (any if empty).

        Raises UnknownRouteError if there is none.
        """
        found = [target for target in route.targets() if version in {"", self._version(target)}]
        if not found:
            raise UnknownRouteError(
                f"the version {version[:200]!a} of {route.name!a} is not served here",
                advice=f"Leave it out, or use {' or '.join(self.versions_of(route))}.",
            )
        return found

    def target_of(self, route: Route, version: str = "") -> Target:
        """Return the target of the next request to a route.

        Raises ModelRefusedError for cascades and pipelines, which choose by the text.
        """
        if route.cascade or route.pipeline:
            raise ModelRefusedError(
                f"the model {route.name!a} is composed of several that generate text",
                unsupported=True,
                advice="Call it at /v1/completions or /v1/chat/completions.",
            )
        targets = self.targets_of(route, version)
        if len(targets) == 1:
            return targets[0]
        # One split per requested version: its credits must not mix with those of all versions.
        asked = route.name, version
        if asked not in self._splits:
            self._splits[asked] = Split([share for share in route.split if share in targets])
        return self._splits[asked].next()

    def _version(self, target: Target) -> str:
        return self.workers[target.slot].spec.model.version

    def requests_in(self, slot: str) -> int:
        """Return the number of requests that use a slot's worker, waiting ones included."""
        return sum(visit.slot == slot for visit in self.visits)

    def check_limit(self, slot: str) -> None:
        """Raise SlotBusyError if a slot has as many requests as it may."""
        limit = self.limits.get(slot) or MOST_PER_SLOT
        if self.requests_in(slot) >= limit:
            raise SlotBusyError(
                f"slot {slot!r} has {limit} requests in progress, which is its maximum",
                advice="Send it again after the time in Retry-After.",
            )

    @contextmanager
    def visit(self) -> Iterator[Visit]:
        """Count a request, which keeps all workers alive until it ends."""
        visit = Visit(self)
        self.visits.add(visit)
        self.idle.clear()
        try:
            yield visit
        finally:
            self.visits.remove(visit)
            if not self.visits:
                self.idle.set()


@dataclass(frozen=True, slots=True)
class SwapReport:
    """Effect of a swap on the requests during it.

    ``switch_seconds``: until the candidate took new requests; ``drain_seconds``: from then until
    the old deployment had answered its last; ``longest_wait_seconds``: longest time that a request
    was held; ``cut_requests``: those still running when the drain timed out.
    """

    switch_seconds: float
    drain_seconds: float
    longest_wait_seconds: float
    held_requests: int
    cut_requests: int


class Serving:
    """Owner of the live deployment. All methods must be called on one event loop."""

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        drain_seconds: float = DRAIN_SECONDS,
        hold_seconds: float = HOLD_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._supervisor = supervisor
        self._drain_seconds = drain_seconds
        self._hold_seconds = hold_seconds
        self._clock = clock
        self._deployment: Deployment | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._longest_wait = 0.0
        self._held = 0

    @property
    def deployment(self) -> Deployment | None:
        """The live deployment; None if there is none."""
        return self._deployment

    @asynccontextmanager
    async def visit(self) -> AsyncIterator[Visit]:
        """Visit the live deployment, waiting for one while a swap holds requests.

        Raises NothingServedError.
        """
        await self._wait_until_open()
        with self._served().visit() as visit:
            yield visit

    @asynccontextmanager
    async def lease(self, name: str, version: str = "") -> AsyncIterator[Worker]:
        """Use the worker behind a route that leads to one model, of this version if given.

        Raises NothingServedError, UnknownRouteError, ModelRefusedError or SlotBusyError.
        """
        async with self.visit() as visit:
            deployment = visit.deployment
            target = deployment.target_of(deployment.route_of(name), version)
            with visit.worker(target.slot) as worker:
                yield worker

    def worker(self, name: str, version: str = "") -> Worker:
        """Return the worker behind a route for inspection; of a composed route, the first.

        Raises NothingServedError or UnknownRouteError.
        """
        deployment = self._served()
        return deployment.workers[deployment.targets_of(deployment.route_of(name), version)[0].slot]

    def versions(self, name: str) -> list[str]:
        """Return the versions behind a route; raise NothingServedError or UnknownRouteError."""
        deployment = self._served()
        return deployment.versions_of(deployment.route_of(name))

    def _served(self) -> Deployment:
        if self._deployment is None:
            raise NothingServedError(
                "this box serves no release yet",
                advice="Roll one out to it, or see `flotilla-agent status`.",
            )
        return self._deployment

    async def hold(self) -> int:
        """Hold new requests, drain the live deployment and stop its workers.

        For a box whose memory cannot hold the candidate beside the live model. The next ``swap`` or
        ``clear`` releases the held requests. Returns the number of requests that were cut off.
        If cancelled during the drain, the live deployment continues to serve.
        """
        # Closed before the deployment is taken away: new requests wait instead of failing.
        self._open.clear()
        self._longest_wait, self._held = 0.0, 0
        old, self._deployment = self._deployment, None
        try:
            cut = await self._drain(old)
        except asyncio.CancelledError:
            self._deployment = old
            self._open.set()
            raise
        await self._stop(old, keep=frozenset())
        return cut

    async def swap(self, deployment: Deployment) -> SwapReport:
        """Make a deployment live, drain the old one and stop the workers that only it used."""
        started = self._clock()
        if self._open.is_set():
            self._longest_wait, self._held = 0.0, 0
        # No await between these lines: a request sees either the old deployment or the new one.
        old, self._deployment = self._deployment, deployment
        held = self._held
        self._open.set()
        switched = self._clock()
        cut = await self._retire(old, keep=frozenset(deployment.workers.values()))
        report = SwapReport(
            switch_seconds=switched - started,
            drain_seconds=self._clock() - switched,
            longest_wait_seconds=self._longest_wait,
            held_requests=held,
            cut_requests=cut,
        )
        log.info(
            "deployment_swapped release=%s drain_seconds=%.3f longest_wait_seconds=%.3f cut=%d",
            deployment.release.reference,
            report.drain_seconds,
            report.longest_wait_seconds,
            cut,
        )
        return report

    async def clear(self) -> None:
        """Stop serving: drain the live deployment and stop its workers."""
        old, self._deployment = self._deployment, None
        self._open.set()
        await self._retire(old, keep=frozenset())

    async def _wait_until_open(self) -> None:
        if self._open.is_set():
            return
        arrived = self._clock()
        self._held += 1
        try:
            async with asyncio.timeout(self._hold_seconds):
                await self._open.wait()
        except TimeoutError:
            raise NothingServedError(
                f"the next release did not start within {self._hold_seconds:g} s",
                advice="Send the request again later.",
            ) from None
        finally:
            self._longest_wait = max(self._longest_wait, self._clock() - arrived)

    async def _retire(self, old: Deployment | None, keep: frozenset[Worker]) -> int:
        cut = await self._drain(old)
        await self._stop(old, keep)
        return cut

    async def _drain(self, old: Deployment | None) -> int:
        """Wait up to the drain limit for a deployment's requests; return how many still run."""
        if old is None:
            return 0
        try:
            async with asyncio.timeout(self._drain_seconds):
                await old.idle.wait()
        except TimeoutError:
            log.warning(
                "drain_timed_out release=%s requests=%d", old.release.reference, len(old.visits)
            )
        return len(old.visits)

    async def _stop(self, old: Deployment | None, keep: frozenset[Worker]) -> None:
        workers = old.workers.values() if old else ()
        stops = [self._supervisor.stop(worker) for worker in workers if worker not in keep]
        # Shielded: no route leads to these workers, so a cancellation must not leave any running.
        await asyncio.shield(asyncio.gather(*stops))
