"""What serves now: the live deployment, the names that lead to it, and the swap to the next.

A request holds a lease on the deployment that answers it. A swap points new leases at the
candidate, waits until the old deployment's leases are given back, and only then stops its workers:
no request fails for it.
"""

import asyncio
import logging
import time
from collections import Counter
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
# Of the gateway's 64 places, so that callers of one slot never keep out those of all others.
MOST_PER_SLOT = 48


@dataclass(eq=False)
class Deployment:
    """A release with a worker for each of its slots."""

    release: Release
    workers: dict[str, Worker]
    routes: dict[str, Route] = field(init=False)
    leases: int = field(init=False, default=0)
    limits: dict[str, int] = field(init=False)
    # Leases by slot.
    inside: Counter[str] = field(init=False, default_factory=Counter)
    idle: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    # By name and, where one was asked for, version.
    _splits: dict[tuple[str, str], Split] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        # A slot is its own route unless a route took its name, and so is each of its adapters.
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
        """Where a name leads; UnknownRouteError."""
        route = self.routes.get(name)
        if route is None:
            known = ", ".join(sorted(self.routes))
            raise UnknownRouteError(
                f"there is no model {name[:200]!a} here", advice=f"Use one of: {known}."
            )
        return route

    def versions_of(self, route: Route) -> list[str]:
        """Of the models that it may lead to, each once."""
        return list(dict.fromkeys(self._version(target) for target in route.targets()))

    def targets_of(self, route: Route, version: str = "") -> Sequence[Target]:
        """Where requests to it may end up, in a model of this version; UnknownRouteError."""
        found = [target for target in route.targets() if version in {"", self._version(target)}]
        if not found:
            raise UnknownRouteError(
                f"there is no version {version[:200]!a} of {route.name!a} here",
                advice=f"Leave it out, or say {' or '.join(self.versions_of(route))}.",
            )
        return found

    def target_of(self, route: Route, version: str = "") -> Target:
        """Where the next request to it goes; ModelRefusedError when its text has to be read."""
        if route.cascade or route.pipeline:
            raise ModelRefusedError(
                f"the model {route.name!a} is composed of several that generate text",
                unsupported=True,
                advice="Call it at /v1/completions or /v1/chat/completions.",
            )
        targets = self.targets_of(route, version)
        if len(targets) == 1:
            return targets[0]
        asked = route.name, version
        if asked not in self._splits:
            self._splits[asked] = Split([share for share in route.split if share in targets])
        return self._splits[asked].next()

    def _version(self, target: Target) -> str:
        return self.workers[target.slot].spec.model.version

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps every worker alive meanwhile."""
        self.leases += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.leases -= 1
            if self.leases == 0:
                self.idle.set()

    @contextmanager
    def lease(self, slot: str) -> Iterator[Worker]:
        """A slot's worker, within a visit; SlotBusyError past the slot's limit."""
        limit = self.limits.get(slot) or MOST_PER_SLOT
        if self.inside[slot] >= limit:
            raise SlotBusyError(
                f"slot {slot!r} answers {limit} requests already",
                advice="Send it again after the time in Retry-After.",
            )
        self.inside[slot] += 1
        try:
            yield self.workers[slot]
        finally:
            self.inside[slot] -= 1


@dataclass(frozen=True, slots=True)
class SwapReport:
    """How a swap went for those who called meanwhile.

    ``switch_seconds``: until the candidate took new requests; ``drain_seconds``: until the old one
    had answered its last; ``longest_wait_seconds``: the longest that a request was held;
    ``cut_requests``: those that still ran when draining took too long.
    """

    switch_seconds: float
    drain_seconds: float
    longest_wait_seconds: float
    held_requests: int
    cut_requests: int


class Serving:
    """Holds the live deployment. All methods belong to one event loop."""

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
        """What serves now."""
        return self._deployment

    @asynccontextmanager
    async def visit(self) -> AsyncIterator[Deployment]:
        """The live deployment, kept alive until the visit ends; NothingServedError."""
        await self._pass_the_gate()
        deployment = self._served()
        with deployment.kept():
            yield deployment

    @asynccontextmanager
    async def lease(self, name: str, version: str = "") -> AsyncIterator[Worker]:
        """The worker behind a route that leads to one, kept alive until the lease ends.

        With a ``version``, only models of that are led to.

        Raises NothingServedError, UnknownRouteError, ModelRefusedError or SlotBusyError.
        """
        async with self.visit() as deployment:
            target = deployment.target_of(deployment.route_of(name), version)
            with deployment.lease(target.slot) as worker:
                yield worker

    def worker(self, name: str, version: str = "") -> Worker:
        """The worker behind a route, to look at; of a composed route, that of its first target.

        Raises NothingServedError or UnknownRouteError.
        """
        deployment = self._served()
        return deployment.workers[deployment.targets_of(deployment.route_of(name), version)[0].slot]

    def versions(self, name: str) -> list[str]:
        """Of the models behind a route; NothingServedError or UnknownRouteError."""
        deployment = self._served()
        return deployment.versions_of(deployment.route_of(name))

    def _served(self) -> Deployment:
        if self._deployment is None:
            raise NothingServedError(
                "this box serves no release yet",
                advice="Roll one out to it, or look at `flotilla-agent status`.",
            )
        return self._deployment

    async def hold(self) -> int:
        """Holds new requests, drains the live deployment and stops its workers.

        For a box where the candidate does not fit beside the live model; the next ``swap`` or
        ``clear`` lets requests go on. Returns how many requests were cut off. Cancelled while it
        drains, the live deployment serves on.
        """
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
        """Makes a deployment live, then drains the old one and stops the workers it alone used."""
        started = self._clock()
        if self._open.is_set():
            self._longest_wait, self._held = 0.0, 0
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
        """Serves nothing any more."""
        old, self._deployment = self._deployment, None
        self._open.set()
        await self._retire(old, keep=frozenset())

    async def _pass_the_gate(self) -> None:
        if self._open.is_set():
            return
        arrived = self._clock()
        self._held += 1
        try:
            async with asyncio.timeout(self._hold_seconds):
                await self._open.wait()
        except TimeoutError:
            raise NothingServedError(
                f"the next release did not come up within {self._hold_seconds:g} s",
                advice="Send the request again later.",
            ) from None
        finally:
            self._longest_wait = max(self._longest_wait, self._clock() - arrived)

    async def _retire(self, old: Deployment | None, keep: frozenset[Worker]) -> int:
        cut = await self._drain(old)
        await self._stop(old, keep)
        return cut

    async def _drain(self, old: Deployment | None) -> int:
        """Wait for its requests, not for ever; how many still run."""
        if old is None:
            return 0
        try:
            async with asyncio.timeout(self._drain_seconds):
                await old.idle.wait()
        except TimeoutError:
            log.warning("drain_timed_out release=%s requests=%d", old.release.reference, old.leases)
        return old.leases

    async def _stop(self, old: Deployment | None, keep: frozenset[Worker]) -> None:
        workers = old.workers.values() if old else ()
        stops = [self._supervisor.stop(worker) for worker in workers if worker not in keep]
        # Nothing leads to these any more: once begun they all end, even for who was cancelled.
        await asyncio.shield(asyncio.gather(*stops))
