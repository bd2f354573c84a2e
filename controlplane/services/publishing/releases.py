"""Releases: published once, by their publisher's signature, and listed."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from artifact.manifest import decode_release
from artifact.trust.repository import accept_release
from controlplane.blobs import ChunkStore
from controlplane.services.access import Caller
from controlplane.services.keys.online_keys import OnlineKeys
from controlplane.services.mutations import Mutation, once
from controlplane.services.publishing.metadata import current_roles, digest
from controlplane.services.publishing.uploads import UploadService
from controlplane.store import releases, trust_metadata
from controlplane.store.database import Database, Transaction
from controlplane.store.ids import new_id
from controlplane.store.paging import Page, PageRequest
from controlplane.store.releases import StoredRelease

log = logging.getLogger(__name__)


class ReleaseService:
    """Publishes releases and returns those that were published."""

    def __init__(
        self,
        database: Database,
        chunks: ChunkStore,
        uploads: UploadService,
        keys: OnlineKeys,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._chunks = chunks
        self._uploads = uploads
        self._keys = keys
        self._clock = clock

    async def publish(
        self, caller: Caller, request_id: str, *, manifest: bytes, targets: bytes
    ) -> StoredRelease:
        """Store a release that its publisher signed and whose files are all here.

        Devices would check the same, so that a mistake is refused here and not in the field.
        Raises InvalidManifestError, ChunkMismatchError or ConflictError (files), UntrustedError
        (signatures, versions, counters); then nothing has changed.
        """
        release = decode_release(manifest)
        await self._uploads.check_files(release)
        now = self._clock()
        sha256 = digest(manifest)

        async def act(tx: Transaction) -> str:
            current = await current_roles(tx)
            accepted = accept_release(current, targets, manifest, self._keys.current, now=now)
            await trust_metadata.add(tx, accepted.changed, now)
            if await releases.find(tx, release.reference) is None:
                stored = StoredRelease(
                    new_id(now), release.reference, release.counter, manifest, sha256, now
                )
                await releases.add(tx, stored)
            return release.reference

        # Devices fetch the manifest by its digest, like a chunk. It is stored before the commit:
        # metadata must never list a manifest that is not there.
        await asyncio.to_thread(self._chunks.put, manifest)
        arguments = {
            "reference": release.reference,
            "manifest": sha256,
            "targets": digest(targets),
        }
        mutation = Mutation(caller.actor, request_id, "release.publish", arguments, now)
        done = await once(self._database, mutation, act)
        log.info("release_published release=%s repeated=%s", done.subject, done.repeated)
        return await self.get(done.subject)

    async def page(self, request: PageRequest) -> Page[StoredRelease]:
        async with self._database.read() as tx:
            return await releases.page(tx, request)

    async def get(self, reference: str) -> StoredRelease:
        """Return a published release; NotFoundError if there is none of this reference."""
        async with self._database.read() as tx:
            return await releases.get(tx, reference)
