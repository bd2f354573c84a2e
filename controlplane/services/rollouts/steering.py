"""Start, steering and watching of rollouts, for operators."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from artifact.manifest import split_reference, target_path
from artifact.trust.expiry import blocking, expiries
from artifact.trust.update import installable
from controlplane.errors import ConflictError, DeviceBusyError
from controlplane.fleet import parse_selector
from controlplane.rollouts import commands
from controlplane.rollouts.gates import Counts
from controlplane.rollouts.records import Facts, Member, Rollout, Wave
from controlplane.rollouts.strategy import Strategy, parse_strategy
from controlplane.rollouts.undoing import revertible
from controlplane.rollouts.waves import TargetDevice, assign_waves
from controlplane.services.access import Caller
from controlplane.services.mutations import Mutation, once
from controlplane.services.rollouts.driver import RolloutDriver, announce, facts_now, reachable_now
from controlplane.services.signals import FLEET_CHANGED, Signals, rollout_key
from controlplane.store import devices, releases, trust_metadata
from controlplane.store import rollouts as stored
from controlplane.store.database import Database, Transaction
from controlplane.store.devices import Device, DeviceState
from controlplane.store.ids import new_id
from controlplane.store.paging import Page, PageRequest
from controlplane.store.rollouts import ListedRollout

log = logging.getLogger(__name__)

# Watchers read again after this long without a signal: another replica may have acted.
WATCH_POLL_SECONDS: Final = 1.0
MAX_REASON: Final = 500

Steer = Callable[[Rollout, Facts, datetime], Rollout]


@dataclass(frozen=True, slots=True)
class RolloutView:
    """A rollout with its devices, and the counts of each wave as of now."""

    rollout: Rollout
    counts: tuple[Counts, ...]


class RolloutService:
    """Load, decide (controlplane.rollouts), apply: each in one transaction."""

    def __init__(
        self,
        database: Database,
        signals: Signals,
        driver: RolloutDriver,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._signals = signals
        self._driver = driver
        self._clock = clock

    async def start(
        self, caller: Caller, request_id: str, *, release: str, selector: str, strategy: str
    ) -> RolloutView:
        """Start a rollout of ``release`` to the active devices that ``selector`` matches.

        Raises InvalidInputError if an argument does not parse, NotFoundError if the release is
        unknown, ConflictError if it is withdrawn or no device matches, DeviceBusyError if a device
        is in another rollout.
        """
        split_reference(release)
        matches = parse_selector(selector).matches
        # Milliseconds for a text at its bounds, in which the event loop serves others.
        waves = await asyncio.to_thread(parse_strategy, strategy)
        now = self._clock()
        arguments = {"release": release, "selector": selector, "strategy": strategy}

        async def act(tx: Transaction) -> str:
            await releases.get(tx, release)
            await _refuse_withdrawn(tx, release)
            await _refuse_expiring(tx, release, now, waves)
            chosen = [
                device
                for device in await devices.every(tx)
                if device.state is DeviceState.ACTIVE and matches(device.labels)
            ]
            if not chosen:
                raise ConflictError(
                    f"no active device matches {selector!r}",
                    advice="`flotilla device list` shows the devices and their labels.",
                )
            # Checked in the same transaction that adds the rollout, so that two starts cannot take
            # one device.
            await _refuse_busy(tx, chosen)
            rollout_id = new_id(now)
            candidates = [
                TargetDevice(one.id, one.hardware_class, reachable_now(one, now)) for one in chosen
            ]
            wave_of = assign_waves(rollout_id, candidates, waves)
            rollout = Rollout(
                id=rollout_id,
                release=release,
                selector=selector,
                strategy=waves,
                created_at=now,
                created_by=caller.actor,
                updated_at=now,
                waves=tuple(Wave(name=spec.name) for spec in waves.waves),
                members={
                    one.id: Member(device_id=one.id, name=one.name, wave=wave_of[one.id])
                    for one in chosen
                },
            )
            await stored.add(tx, rollout)
            tx.after_commit(partial(self._signals.notify, FLEET_CHANGED))
            return rollout_id

        mutation = Mutation(caller.actor, request_id, "rollout.start", arguments, now)
        done = await once(self._database, mutation, act)
        log.info("rollout_started rollout=%s repeated=%s", done.subject, done.repeated)
        # The answer then shows the first assignments, without waiting for the driver.
        await self._driver.tick_one(done.subject)
        return await self.get(done.subject)

    async def pause(
        self, caller: Caller, request_id: str, rollout_id: str, reason: str
    ) -> RolloutView:
        """Stop making assignments at once."""
        reason = reason[:MAX_REASON] or f"paused by {caller.actor}"

        def change(rollout: Rollout, facts: Facts, now: datetime) -> Rollout:
            del facts
            return commands.pause(rollout, reason, now)

        return await self._change(
            caller, request_id, "rollout.pause", rollout_id, reason=reason, steer=change
        )

    async def resume(self, caller: Caller, request_id: str, rollout_id: str) -> RolloutView:
        """Continue, accepting the failures so far."""
        return await self._change(
            caller, request_id, "rollout.resume", rollout_id, reason="", steer=commands.resume
        )

    async def abort(
        self, caller: Caller, request_id: str, rollout_id: str, reason: str
    ) -> RolloutView:
        """Stop the rollout for good; devices keep their present releases."""
        reason = reason[:MAX_REASON] or f"aborted by {caller.actor}"

        def change(rollout: Rollout, facts: Facts, now: datetime) -> Rollout:
            del facts
            return commands.abort(rollout, reason, now)

        return await self._change(
            caller, request_id, "rollout.abort", rollout_id, reason=reason, steer=change
        )

    async def roll_back(
        self, caller: Caller, request_id: str, rollout_id: str, reason: str
    ) -> RolloutView:
        """Assign every device that the rollout reached the release that it ran before."""
        reason = reason[:MAX_REASON] or f"rolled back by {caller.actor}"

        def change(rollout: Rollout, facts: Facts, now: datetime) -> Rollout:
            return commands.roll_back(rollout, facts, reason, now)

        return await self._change(
            caller, request_id, "rollout.rollback", rollout_id, reason=reason, steer=change
        )

    async def _change(
        self,
        caller: Caller,
        request_id: str,
        action: str,
        rollout_id: str,
        *,
        reason: str,
        steer: Steer,
    ) -> RolloutView:
        now = self._clock()

        async def act(tx: Transaction) -> str:
            seen = await stored.get(tx, rollout_id)
            facts = await facts_now(tx, seen.rollout, now)
            after = steer(seen.rollout, facts, now)
            if action == "rollout.rollback":
                await _refuse_taken(tx, after, facts)
            await stored.save(tx, seen, after)
            announce(tx, self._signals, rollout_id)
            return rollout_id

        arguments = {"rollout": rollout_id, "reason": reason}
        done = await once(
            self._database, Mutation(caller.actor, request_id, action, arguments, now), act
        )
        log.info("rollout_steered rollout=%s action=%s", done.subject, action)
        await self._driver.tick_one(done.subject)
        return await self.get(rollout_id)

    async def get(self, rollout_id: str) -> RolloutView:
        view, _ = await self._look(rollout_id)
        return view

    async def page(self, request: PageRequest) -> Page[ListedRollout]:
        async with self._database.read() as tx:
            return await stored.page(tx, request, self._clock())

    async def watch(self, rollout_id: str) -> AsyncIterator[RolloutView]:
        """Yield the rollout now and after every change, until it is finished."""
        seen = -1
        with self._signals.subscribe(rollout_key(rollout_id)) as changed:
            while True:
                changed.clear()
                view, version = await self._look(rollout_id)
                if version != seen:
                    seen = version
                    yield view
                if view.rollout.state.finished:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(WATCH_POLL_SECONDS):
                        await changed.wait()

    async def _look(self, rollout_id: str) -> tuple[RolloutView, int]:
        now = self._clock()
        async with self._database.read() as tx:
            seen = await stored.get(tx, rollout_id)
            facts = await facts_now(tx, seen.rollout, now)
        counts = tuple(
            seen.rollout.counts(index, facts) for index in range(len(seen.rollout.waves))
        )
        return RolloutView(seen.rollout, counts), seen.version


async def _refuse_withdrawn(tx: Transaction, release: str) -> None:
    """Raise ConflictError if the release is withdrawn: every device would refuse it."""
    current = await trust_metadata.current(tx)
    if current and target_path(release) not in installable(current):
        raise ConflictError(
            f"{release} is withdrawn: its publisher delisted it, or raised the floor above it",
            advice="Roll out a release that `flotilla release list` shows as listed.",
        )


async def _refuse_expiring(
    tx: Transaction, release: str, now: datetime, strategy: Strategy
) -> None:
    """Raise ConflictError if metadata expires before the last wave can have its assignment.

    Devices refuse expired metadata, so the rollout would fail on all of them. The soaks are the
    least time that it takes.
    """
    current = await trust_metadata.current(tx)
    if not current:
        return
    last_wave = now + timedelta(seconds=sum(wave.soak_seconds for wave in strategy.waves[:-1]))
    publisher = release.partition("/")[0]
    ending = await asyncio.to_thread(
        lambda: blocking(expiries(current), publisher, max(now, last_wave))
    )
    if ending:
        roles = ", ".join(f"{role} ({at:%Y-%m-%d %H:%M} UTC)" for role, at in ending.items())
        raise ConflictError(
            f"devices would refuse {release}: the metadata of {roles} expires before the rollout "
            "can end",
            advice="Renew it first: `flotilla keys renew`.",
        )


async def _refuse_busy(tx: Transaction, chosen: list[Device]) -> None:
    taken = await stored.busy(tx)
    for device in chosen:
        if device.id in taken:
            raise _busy_error(device.name, taken[device.id])


async def _refuse_taken(tx: Transaction, rollout: Rollout, facts: Facts) -> None:
    """Raise DeviceBusyError if a device to be rolled back is in another unfinished rollout."""
    taken = await stored.busy(tx, besides=rollout.id)
    for member in revertible(rollout, facts):
        if member.device_id in taken:
            raise _busy_error(member.name, taken[member.device_id])


def _busy_error(device: str, rollout_id: str) -> DeviceBusyError:
    return DeviceBusyError(
        f"device {device!r} is already part of rollout {rollout_id}, which is not finished",
        advice=f"Wait for it (`flotilla rollout watch {rollout_id}`), or abort or roll it back.",
    )
