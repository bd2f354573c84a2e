"""What the director signs for each device: its assignment, in TUF metadata of its own."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from artifact.trust.director import direct
from artifact.trust.statements import DirectedRelease, Directive, DirectorMetadata
from controlplane.services.access import Caller
from controlplane.services.keys.director_keys import DirectorKeys
from controlplane.services.mutations import Mutation, once
from controlplane.services.signals import Signals
from controlplane.store import assignments, releases
from controlplane.store.assignments import Assignment
from controlplane.store.database import Database, Transaction

log = logging.getLogger(__name__)

MAX_REMEMBERED: Final = 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """An assignment, and since when it stands; None before the first.

    Under the director's root of this version: with another it is sent anew.
    """

    assignment: Assignment
    since: datetime | None
    root_version: int


class DirectorService:
    """Signs anew whenever it is asked; nothing of it is stored (artifact.trust.director)."""

    def __init__(
        self,
        database: Database,
        keys: DirectorKeys,
        signals: Signals,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._keys = keys
        self._signals = signals
        self._clock = clock
        # Each rotation needs a version of its own.
        self._rotating = asyncio.Lock()
        self._remembered: dict[str, DirectedRelease] = {}

    async def wanted(self, device_id: str) -> Wanted:
        """Of this device, now."""
        async with self._database.read() as tx:
            assignment, since = await assignments.get(tx, device_id)
        return Wanted(assignment, since, self._keys.version)

    async def sign(self, device_id: str, wanted: Wanted) -> DirectorMetadata | None:
        """For this device and assignment; None before its first.

        NotFoundError when the release was never published.
        """
        assignment, since = wanted.assignment, wanted.since
        if since is None:
            return None
        release = await self._release(assignment.release) if assignment.release else None
        directive = Directive(device_id, assignment.generation, release)
        return direct(
            directive,
            self._keys.online,
            assigned_at=since,
            now=self._clock(),
            roots=self._keys.roots,
        )

    async def rotate_key(self, caller: Caller, request_id: str, *, root: bool) -> int:
        """A new key for assignments, or for the director's root; the version of the root then.

        The audit log learns of it before the disk does; sent again, the request finishes what a
        crash left undone.
        """
        now = self._clock()
        async with self._rotating:
            following = self._keys.version + 1

            async def act(_: Transaction) -> str:
                self._keys.check_room()
                return str(following)

            arguments = {"root": root}
            mutation = Mutation(caller.actor, request_id, "director.rotate", arguments, now)
            done = await once(self._database, mutation, act)
            version = int(done.subject)
            if self._keys.rotate(version, root=root, now=now):
                log.warning("director_key_rotated root=%s version=%d", root, version)
                self._signals.notify_devices()
            return version

    async def _release(self, reference: str) -> DirectedRelease:
        """Releases never change, so what was read once holds."""
        known = self._remembered.get(reference)
        if known is None:
            async with self._database.read() as tx:
                stored = await releases.get(tx, reference)
            known = DirectedRelease(
                reference, len(stored.manifest), stored.manifest_sha256, stored.counter
            )
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[reference] = known
        return known
