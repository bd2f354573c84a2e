"""The rollout driver: advances rollouts when devices report or time passes."""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial

from controlplane.errors import StaleError, StorageError
from controlplane.fleet import presence
from controlplane.rollouts import commands
from controlplane.rollouts.plan import Plan
from controlplane.rollouts.records import DeviceFact, Rollout
from controlplane.rollouts.tick import tick
from controlplane.services.signals import FLEET_CHANGED, Signals, device_key, rollout_key
from controlplane.store import assignments, releases, rollout_devices
from controlplane.store import rollouts as stored
from controlplane.store.assignments import Assignment, Change
from controlplane.store.database import Database, Transaction
from controlplane.store.devices import Device
from controlplane.store.rollout_devices import DeviceNow
from controlplane.store.rollouts import StoredRollout

log = logging.getLogger(__name__)


class RolloutDriver:
    """Load, plan (controlplane.rollouts), apply: each rollout in one transaction."""

    def __init__(self, database: Database, signals: Signals, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._signals = signals
        self._clock = clock

    async def tick(self) -> None:
        """Advance every unfinished rollout as far as possible now."""
        async with self._database.read() as tx:
            ids = await stored.moving(tx)
        for rollout_id in ids:
            await self.tick_one(rollout_id)

    async def tick_one(self, rollout_id: str) -> None:
        """Advance one rollout as far as possible now; log an error instead of raising it."""
        try:
            await self._move(rollout_id)
        except StaleError as error:
            # Another request changed the rollout or a device meanwhile; the next tick retries.
            log.info("rollout_tick_stale rollout=%s reason=%s", rollout_id, error)
        except StorageError:
            # The database has logged it; the next tick retries.
            return
        except Exception:
            # A rollout that fails must not stop the others.
            log.exception("rollout_tick_failed rollout=%s", rollout_id)

    async def _move(self, rollout_id: str) -> None:
        # Usually nothing is due. Find that out in a read, because the write lock is exclusive.
        async with self._database.read() as tx:
            seen, plan = await self._plan(tx, rollout_id)
        if plan.rollout == seen.rollout:
            return
        async with self._database.write() as tx:
            seen, plan = await self._plan(tx, rollout_id)
            # Decided again inside the write: a receipt may have come in between.
            if plan.rollout == seen.rollout:
                return
            await self._apply(tx, seen, plan)
        for before, after in zip(seen.rollout.waves, plan.rollout.waves, strict=True):
            if before.state is not after.state:
                log.info(
                    "rollout_wave rollout=%s wave=%s state=%s", rollout_id, after.name, after.state
                )
        log.info(
            "rollout_ticked rollout=%s state=%s assigned=%d reason=%s",
            rollout_id,
            plan.rollout.state,
            len(plan.assignments),
            ascii(plan.rollout.reason),
        )

    async def _plan(self, tx: Transaction, rollout_id: str) -> tuple[StoredRollout, Plan]:
        now = self._clock()
        seen = await stored.get(tx, rollout_id)
        return seen, tick(seen.rollout, await facts_now(tx, seen.rollout, now), now)

    async def _apply(self, tx: Transaction, seen: StoredRollout, plan: Plan) -> None:
        now = plan.rollout.updated_at
        await stored.save(tx, seen, plan.rollout)
        digests = await releases.digests(tx, {assign.release for assign in plan.assignments})
        changes = [
            Change(
                assign.device_id,
                assign.seen_generation,
                Assignment(
                    assign.generation,
                    assign.release,
                    digests[assign.release] if assign.release else "",
                ),
            )
            for assign in plan.assignments
        ]
        # Guarded by the generation that the plan saw: StaleError if another order came first.
        await assignments.replace(tx, changes, now)
        for change in changes:
            tx.after_commit(partial(self._signals.notify, device_key(change.device_id)))
        announce(tx, self._signals, seen.rollout.id)

    async def settle(
        self, tx: Transaction, device_id: str, outcome: commands.UpdateResult, now: datetime
    ) -> None:
        """Apply a stored receipt, within ``tx``, to the rollout that made its assignment."""
        rollout_id = await rollout_devices.rollout_of(tx, device_id, outcome.generation)
        if rollout_id is None:
            return
        retries = commands.retries_allowed(*await stored.policy(tx, rollout_id))
        await stored.change_member(
            tx, rollout_id, device_id, lambda one: commands.settle(one, outcome, retries), now
        )
        announce(tx, self._signals, rollout_id)


async def facts_now(tx: Transaction, rollout: Rollout, now: datetime) -> Mapping[str, DeviceFact]:
    """Return the current facts about the rollout's devices."""
    found = await rollout_devices.known_now(tx, rollout.id)
    # A device may report any release; only a published one can be assigned to it again.
    published = await releases.digests(tx, {device.current_release for device in found})
    return {
        device.id: DeviceFact(
            reachable=reachable_now(device, now),
            generation=device.generation,
            assigned_release=device.assigned_release,
            current_release=device.current_release if device.current_release in published else "",
            active=device.active,
        )
        for device in found
    }


def reachable_now(device: Device | DeviceNow, now: datetime) -> bool:
    return presence(connected=device.connected, last_seen_at=device.last_seen_at, now=now).reachable


def announce(tx: Transaction, signals: Signals, rollout_id: str) -> None:
    """Wake, after the commit, the watchers of this rollout and the driver."""
    tx.after_commit(partial(signals.notify, rollout_key(rollout_id)))
    tx.after_commit(partial(signals.notify, FLEET_CHANGED))
