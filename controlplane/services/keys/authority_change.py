"""Replacing the certificate authority of a live fleet (docs/adr/0010).

Two steps, each of which can be repeated at any time:

- ``rotate`` adds a new authority beside the old one. Devices receive it on their streams, accept it
  because the old one endorses it, and renew under it. The server still presents a certificate of
  the old authority, which every device trusts.
- ``retire`` ends the change once every active device has presented a certificate of the new
  authority, and so trusts it. The server then presents one too, and accepts no old certificate.

The audit log is written before the key files, so that every step in effect is in the log.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec

from artifact.trust.statements import Authorities
from controlplane.errors import ConflictError, InvalidInputError
from controlplane.services.access import Caller
from controlplane.services.keys.authority import BACKDATED
from controlplane.services.keys.private_files import write_private
from controlplane.services.keys.server_keys import ServerKeys
from controlplane.services.mutations import Mutation, once
from controlplane.services.signals import Signals
from controlplane.store import devices
from controlplane.store.database import Database, Transaction
from controlplane.store.devices import Device

log = logging.getLogger(__name__)

MAX_SILENT_SECONDS: Final = 3650 * 86400.0
MAX_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class AuthorityChange:
    """The authorities, and the fleet's progress. ``waiting``: the longest unseen first."""

    authorities: Authorities
    current_sha256: str
    previous_sha256: str
    made_at: datetime
    expires_at: datetime
    moved: int
    waiting: Sequence[Device]


class AuthorityService:
    """Shows and replaces the authority."""

    def __init__(
        self,
        database: Database,
        keys: ServerKeys,
        signals: Signals,
        clock: Callable[[], datetime],
        *,
        context: Path,
    ) -> None:
        """``context`` is the first admin's context file, kept current while it is there."""
        self._database = database
        self._keys = keys
        self._signals = signals
        self._clock = clock
        self._context = context
        self._announce()

    async def status(self) -> AuthorityChange:
        files = self._keys.authorities
        async with self._database.read() as tx:
            waiting = await devices.without_authority(tx, files.current.sha256)
            active = await devices.count_active(tx)
        certificate = files.current.certificate
        return AuthorityChange(
            authorities=files.offered,
            current_sha256=files.current.sha256,
            previous_sha256=files.previous.sha256 if files.previous else "",
            made_at=certificate.not_valid_before_utc + BACKDATED,
            expires_at=certificate.not_valid_after_utc,
            moved=active - len(waiting),
            waiting=sorted(waiting, key=_last_seen),
        )

    async def rotate(self, caller: Caller, request_id: str) -> AuthorityChange:
        """Begin a change, unless one is in progress."""
        now = self._clock()
        files = self._keys.authorities
        if files.previous is None:
            # The key is made before the mutation: its digest is what a repeated request returns.
            following = files.prepare(now)

            async def act(_: Transaction) -> str:
                return following

            mutation = Mutation(caller.actor, request_id, "authority.rotate", {}, now)
            done = await once(self._database, mutation, act)
            # After the audit log. A crash in between leaves the prepared files, and the repeated
            # request has the same subject and begins with them.
            if files.begin(done.subject, now):
                log.warning("authority_rotated sha256=%s", done.subject)
                self._announce()
        return await self.status()

    async def retire(
        self, caller: Caller, request_id: str, leave_silent_seconds: float
    ) -> AuthorityChange:
        """End a change, if one is in progress; ConflictError while devices would be locked out.

        Devices that were last seen longer than ``leave_silent_seconds`` ago may be; 0 allows none.
        """
        if not 0 <= leave_silent_seconds <= MAX_SILENT_SECONDS:
            raise InvalidInputError(
                f"{leave_silent_seconds} s of silence are not within 0 to "
                f"{MAX_SILENT_SECONDS:.0f} s",
                advice="Give it in days, for instance 30d.",
            )
        now = self._clock()
        files = self._keys.authorities
        if files.previous is not None:
            current, previous = files.current.sha256, files.previous.sha256

            async def act(tx: Transaction) -> str:
                # Within the transaction, so that no device can enrol between check and decision.
                waiting = await devices.without_authority(tx, current)
                _check_locked_out(waiting, leave_silent_seconds, now)
                return previous

            arguments = {"leave_silent_seconds": leave_silent_seconds}
            mutation = Mutation(caller.actor, request_id, "authority.retire", arguments, now)
            done = await once(self._database, mutation, act)
            if files.end(done.subject, now):
                self._keys.renew(now)
                log.warning("authority_retired sha256=%s", done.subject)
                self._announce()
        return await self.status()

    def _announce(self) -> None:
        """Send devices the authorities, and write them into the operator's context file."""
        self._signals.notify_devices()
        try:
            self._refresh_context()
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("context_not_refreshed path=%s error=%s", self._context, error)

    def _refresh_context(self) -> None:
        if not self._context.exists():
            return
        bundle = self._keys.authorities.offered.bundle.decode()
        context = msgspec.json.decode(self._context.read_bytes(), type=dict[str, str])
        if context.get("ca_pem") != bundle:
            write_private(self._context, msgspec.json.encode({**context, "ca_pem": bundle}))


def _check_locked_out(waiting: Sequence[Device], silent_seconds: float, now: datetime) -> None:
    silent_since = now - timedelta(seconds=silent_seconds)
    # A connected device is never silent, whatever its last contact was.
    locked_out = [
        device
        for device in waiting
        if device.connected or not silent_seconds or _last_seen(device) > silent_since
    ]
    if locked_out:
        names = ", ".join(device.name for device in sorted(locked_out, key=_last_seen)[:MAX_NAMED])
        more = f" and {len(locked_out) - MAX_NAMED} more" if len(locked_out) > MAX_NAMED else ""
        raise ConflictError(
            f"{len(locked_out)} active device(s) have no certificate of the new authority yet: "
            f"{names}{more}",
            advice="Wait until they have connected, retire those that are gone, or leave the "
            "silent ones behind: `flotilla ca retire --leave-silent 30d`. Quarantined devices do "
            "not count: release those first that should keep their access.",
        )


def _last_seen(device: Device) -> datetime:
    return device.last_seen_at or device.enrolled_at
