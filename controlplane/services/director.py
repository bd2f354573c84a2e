"""The director: signs each device's assignment as TUF metadata."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cachetools import LRUCache

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

MAX_CACHED_RELEASES: Final = 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """An assignment with the time it was made, None before the first.

    A device gets the assignment again when ``root_version``, the director's root, changes.
    """

    assignment: Assignment
    since: datetime | None
    root_version: int


class DirectorService:
    """Signs assignments on demand; signatures are not stored (artifact.trust.director)."""

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
        # Two rotations at once would take the same root version.
        self._rotating = asyncio.Lock()
        self._releases: LRUCache[str, DirectedRelease] = LRUCache(MAX_CACHED_RELEASES)

    async def wanted(self, device_id: str) -> Wanted:
        """Return the current assignment of a device."""
        async with self._database.read() as tx:
            assignment, since = await assignments.get(tx, device_id)
        return Wanted(assignment, since, self._keys.version)

    async def sign(self, device_id: str, wanted: Wanted) -> DirectorMetadata | None:
        """Sign an assignment for a device; None if there is no assignment yet.

        Raises NotFoundError if the release was never published.
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
        """Replace the key for assignments or that of the director's root; return the new version.

        The audit log is written before the key files, and the request can be repeated after a
        crash between the two: it then finishes the rotation.
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
        """Return a release's signed description; the cache is valid: releases never change."""
        found = self._releases.get(reference)
        if found is None:
            async with self._database.read() as tx:
                stored = await releases.get(tx, reference)
            found = DirectedRelease(
                reference, len(stored.manifest), stored.manifest_sha256, stored.counter
            )
            self._releases[reference] = found
        return found
