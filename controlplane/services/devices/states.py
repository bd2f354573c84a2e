"""Device states: quarantine, release, ban, retire.

A device that is not active is refused on every call, its open stream is closed, and it gets no
assignment; it keeps serving the release that it has. Quarantine is for a suspected device, a ban
for a hostile one: both keep the name and the key, so that the box cannot enrol as another device,
and both can be undone. Retiring is final and frees the name.
"""

import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Final

from controlplane.errors import ConflictError, ForbiddenError, InvalidInputError
from controlplane.services.access import Caller
from controlplane.services.mutations import Mutation, once
from controlplane.services.signals import FLEET_CHANGED, Signals, device_key
from controlplane.store import audit, devices
from controlplane.store.database import Database, Transaction
from controlplane.store.devices import Device, DeviceState

log = logging.getLogger(__name__)

MAX_REASON_CHARACTERS: Final = 500
# The action in the audit log, by the state that is entered.
ACTIONS: Final = {
    DeviceState.ACTIVE: "device.release",
    DeviceState.QUARANTINED: "device.quarantine",
    DeviceState.BANNED: "device.ban",
    DeviceState.RETIRED: "device.retire",
}
# The states from which each state may be entered.
_FROM: Final = {
    DeviceState.ACTIVE: {DeviceState.QUARANTINED, DeviceState.BANNED},
    DeviceState.QUARANTINED: {DeviceState.ACTIVE},
    DeviceState.BANNED: {DeviceState.ACTIVE, DeviceState.QUARANTINED},
    DeviceState.RETIRED: {DeviceState.ACTIVE, DeviceState.QUARANTINED},
}
_ADVICE: Final = {
    DeviceState.ACTIVE: "It is active already.",
    DeviceState.QUARANTINED: "`flotilla device release NAME` makes it active.",
    DeviceState.BANNED: "`flotilla device release NAME` makes it active; lift the ban first.",
    DeviceState.RETIRED: "Retiring is final: enrol the box again, as a new device.",
}


def check_active(device: Device) -> None:
    """Raise ForbiddenError unless the device is active."""
    if device.state is DeviceState.ACTIVE:
        return
    why = f": {device.state_reason}" if device.state_reason else ""
    advice = "It keeps serving the release that it has; ask the operator of the fleet."
    if device.state is DeviceState.RETIRED:
        advice = "Enrol the box again into an empty data directory."
    raise ForbiddenError(f"device {device.name!r} is {device.state}{why}", advice=advice)


class DeviceStateService:
    """Changes device states, for operators and when a copied certificate is detected."""

    def __init__(self, database: Database, signals: Signals, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._signals = signals
        self._clock = clock

    async def check(self, device_id: str) -> None:
        """Raise ForbiddenError unless the device is active now."""
        async with self._database.read() as tx:
            check_active(await devices.get(tx, device_id))

    async def change(
        self, caller: Caller, request_id: str, name_or_id: str, state: str, reason: str
    ) -> str:
        """Put a device into another state and return its id.

        Raises InvalidInputError if the state is unknown, ConflictError if the device cannot enter
        it from its present state.
        """
        wanted = _parse(state)
        reason = _one_line(reason)
        arguments = {"device": name_or_id, "state": wanted, "reason": reason}

        async def act(tx: Transaction) -> str:
            device = await devices.get(tx, name_or_id)
            if device.state not in _FROM[wanted]:
                raise ConflictError(
                    f"device {device.name!r} is {device.state} and cannot become {wanted}",
                    advice=_ADVICE[device.state],
                )
            # A reason explains why a device is refused; an active one has none.
            kept = "" if wanted is DeviceState.ACTIVE else reason
            await self._set(tx, device, wanted, kept)
            return device.id

        mutation = Mutation(caller.actor, request_id, ACTIONS[wanted], arguments, self._clock())
        done = await once(self._database, mutation, act)
        log.info(
            "device_state_changed device=%s state=%s repeated=%s",
            done.subject,
            wanted,
            done.repeated,
        )
        return done.subject

    async def quarantine_clone(self, device: Device, serial: str) -> None:
        """Quarantine a device whose old certificate was used after its successor.

        Then there are two boxes with the same key, for instance after a disk was copied.
        """
        reason = f"certificate {serial} was used after it was replaced: its disk may be copied"
        async with self._database.write() as tx:
            # Another call with the same certificate may have come first.
            fresh = await devices.get(tx, device.id)
            if fresh.state is not DeviceState.ACTIVE:
                return
            await self._set(tx, fresh, DeviceState.QUARANTINED, reason)
            await audit.append(
                tx,
                at=self._clock(),
                actor="server",
                action=ACTIONS[DeviceState.QUARANTINED],
                subject=device.id,
                detail=f"{device.name}: {reason}",
            )
        log.warning(
            "device_cloned device=%s name=%s serial=%s state=quarantined",
            device.id,
            device.name,
            serial,
        )

    async def _set(self, tx: Transaction, device: Device, state: DeviceState, reason: str) -> None:
        await devices.set_state(tx, device, state, reason)
        # The device's stream checks its state when it wakes, and ends.
        for key in (device_key(device.id), FLEET_CHANGED):
            tx.after_commit(partial(self._signals.notify, key))


def _parse(state: str) -> DeviceState:
    try:
        return DeviceState(state)
    except ValueError:
        raise InvalidInputError(
            f"{state[:40]!r} is not a device state",
            advice="Use active, quarantined, banned or retired.",
        ) from None


def _one_line(reason: str) -> str:
    if len(reason) > MAX_REASON_CHARACTERS or not all(map(str.isprintable, reason)):
        raise InvalidInputError(
            f"the reason has {len(reason)} characters; it must be one printable line of at most "
            f"{MAX_REASON_CHARACTERS}",
            advice="Give a short --reason.",
        )
    return reason
