"""Restore of the image repository after a backup: metadata and releases that the server lost."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from artifact.errors import ArtifactError
from artifact.manifest import decode_release, target_path
from artifact.trust.metadata import ListedRelease, Roles
from artifact.trust.restore import LostMetadata, accept_lost, listings
from artifact.trust.statements import VerifiedRelease, check_manifest
from controlplane.blobs import ChunkStore
from controlplane.errors import ControlPlaneError, InvalidInputError
from controlplane.services.access import Caller
from controlplane.services.keys.online_keys import OnlineKeys
from controlplane.services.mutations import Mutation, once
from controlplane.services.publishing.metadata import MAX_PUBLISHERS, current_roles, digest
from controlplane.services.publishing.uploads import UploadService
from controlplane.store import releases, trust_metadata
from controlplane.store.database import Database, Transaction
from controlplane.store.ids import new_id
from controlplane.store.releases import StoredRelease

log = logging.getLogger(__name__)

MAX_ROOTS = 256


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """Roles and releases that came back, and listed releases whose files are missing."""

    roles: list[str]
    releases: list[str]
    incomplete: list[str]


class RestoreService:
    """Accepts metadata from key folders, and finds its releases in the chunk store."""

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

    async def restore(self, caller: Caller, request_id: str, lost: LostMetadata) -> RestoreReport:
        """Store the metadata that is newer than the server's; then store its releases.

        Raises ConflictError before there is a repository, UntrustedError if the metadata breaks a
        rule; then nothing has changed. Can be repeated with every key folder.
        """
        if max(len(lost.delegated), len(lost.roots)) > min(MAX_PUBLISHERS, MAX_ROOTS):
            raise InvalidInputError(
                f"the restore has {len(lost.roots)} roots and {len(lost.delegated)} publishers; "
                f"the maximum is {MAX_ROOTS} each",
                advice="Restore from one key folder at a time.",
            )
        now = self._clock()
        restored: list[str] = []
        arguments = {
            "roots": [digest(root) for root in lost.roots],
            "targets": digest(lost.targets) if lost.targets else "",
            "delegated": {name: digest(data) for name, data in lost.delegated.items()},
        }

        async def act(tx: Transaction) -> str:
            current = await current_roles(tx)
            accepted = accept_lost(current, lost, self._keys.named_by, now=now)
            for root in accepted.roots:
                await trust_metadata.add(tx, {"root": root}, now)
            await trust_metadata.add(tx, accepted.changed, now)
            restored.extend(accepted.restored)
            newest = accepted.roots[-1] if accepted.roots else current["root"]
            tx.after_commit(lambda: self._keys.settle(newest))
            return "image repository"

        mutation = Mutation(caller.actor, request_id, "trust.restore", arguments, now)
        await once(self._database, mutation, act)
        found, incomplete = await self._restore_releases(now)
        log.warning(
            "trust_restored roles=%s releases=%s incomplete=%s",
            ",".join(restored),
            ",".join(found),
            ",".join(incomplete),
        )
        return RestoreReport(restored, found, incomplete)

    async def _restore_releases(self, now: datetime) -> tuple[list[str], list[str]]:
        """Store the rows of listed releases whose manifest and files are in the chunk store."""
        async with self._database.read() as tx:
            roles = await current_roles(tx)
            listed = await asyncio.to_thread(_listed_by_reference, roles)
            known = await releases.digests(tx, listed)
        found, incomplete = [], []
        for reference in sorted(listed.keys() - known):
            release = listed[reference]
            try:
                manifest = await self._manifest(reference, release)
            except (ArtifactError, ControlPlaneError) as error:
                incomplete.append(reference)
                log.info("release_incomplete release=%s reason=%s", reference, ascii(str(error)))
                continue
            stored = StoredRelease(
                new_id(now), reference, release.counter, manifest, release.sha256, now
            )
            async with self._database.write() as tx:
                if await releases.find(tx, reference) is None:
                    await releases.add(tx, stored)
            found.append(reference)
        return found, incomplete

    async def _manifest(self, reference: str, listed: ListedRelease) -> bytes:
        """Read a manifest and check it and its files; raises if any part is missing."""
        manifest = await asyncio.to_thread(self._chunks.read, bytes.fromhex(listed.sha256))
        verified = VerifiedRelease(
            reference, listed.length, listed.sha256, listed.counter, listed.min_release, {}
        )
        check_manifest(verified, manifest)
        await self._uploads.check_files(decode_release(manifest))
        return manifest


def _listed_by_reference(roles: Roles) -> dict[str, ListedRelease]:
    """Return the listed releases by reference: the path publisher/name/1.json is name@1."""
    found = {}
    for release in listings(roles):
        version = release.path.rpartition("/")[2].removesuffix(".json")
        reference = f"{release.name}@{version}"
        if target_path(reference) == release.path:
            found[reference] = release
    return found
