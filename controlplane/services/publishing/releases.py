"""Publishing: chunks and signed metadata in, nothing stored that devices would refuse."""

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from artifact.chunks import MAX_CHUNK_BYTES, decode_index_of
from artifact.manifest import File, Release, decode_release
from artifact.trust.keys import encode_public_key
from artifact.trust.metadata import Roles, version_of
from artifact.trust.repository import accept_release, initialise, refresh
from artifact.trust.update import Update, accept_update, installable
from controlplane.blobs import ChunkStore
from controlplane.errors import ConflictError, InvalidInputError, NotFoundError
from controlplane.services.access import Caller
from controlplane.services.keys.online_keys import OnlineKeys
from controlplane.services.mutations import Mutation, once
from controlplane.store import releases, trust_metadata
from controlplane.store.database import Database, Transaction
from controlplane.store.ids import new_id
from controlplane.store.paging import Page, PageRequest
from controlplane.store.releases import StoredRelease

log = logging.getLogger(__name__)

METADATA_NAME: Final = re.compile(r"([1-9][0-9]{0,9}\.)?[a-z0-9-]{1,64}\.json")
MAX_QUERIED_DIGESTS: Final = 16384
MAX_PUBLISHERS: Final = 256


@dataclass(frozen=True, slots=True)
class TrustState:
    """Public keys of the online roles and of their successors, and the root's version (0: none)."""

    snapshot_key: bytes
    timestamp_key: bytes
    next_snapshot_key: bytes
    next_timestamp_key: bytes
    root_version: int


class TrustService:
    """The server's side of the image repository, and the files that its releases name."""

    def __init__(
        self,
        database: Database,
        chunks: ChunkStore,
        keys: OnlineKeys,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._chunks = chunks
        self._keys = keys
        self._clock = clock

    # -- trust

    async def state(self) -> TrustState:
        async with self._database.read() as tx:
            current = await trust_metadata.current(tx)
        root_version = version_of("root", current["root"]) if current else 0
        held, following = self._keys.current, self._keys.following
        return TrustState(
            snapshot_key=encode_public_key(held.snapshot.public_key),
            timestamp_key=encode_public_key(held.timestamp.public_key),
            next_snapshot_key=encode_public_key(following.snapshot.public_key),
            next_timestamp_key=encode_public_key(following.timestamp.public_key),
            root_version=root_version,
        )

    async def initialise(
        self,
        caller: Caller,
        request_id: str,
        *,
        root: bytes,
        targets: bytes,
        delegated: Mapping[str, bytes],
    ) -> None:
        """Found the image repository.

        ConflictError when there is one already, UntrustedError for metadata that cannot found one.
        """
        if len(delegated) > MAX_PUBLISHERS:
            raise InvalidInputError(
                f"{len(delegated)} publishers are more than {MAX_PUBLISHERS}",
                advice="Start with fewer publishers.",
            )
        now = self._clock()
        arguments = {
            "root": _digest(root),
            "targets": _digest(targets),
            "delegated": {name: _digest(data) for name, data in delegated.items()},
        }

        async def act(tx: Transaction) -> str:
            if await trust_metadata.current(tx):
                raise ConflictError(
                    "this server already has an image repository",
                    advice="Publish with the keys that `flotilla keys init` made for it.",
                )
            roles = initialise(root, targets, delegated, self._keys.current, now=now)
            await trust_metadata.add(tx, roles, now)
            return "image repository"

        mutation = Mutation(caller.actor, request_id, "trust.initialise", arguments, now)
        await once(self._database, mutation, act)
        log.info("trust_initialised publishers=%s", ",".join(sorted(delegated)))

    async def update(self, caller: Caller, request_id: str, update: Update) -> int:
        """Take a change by the offline keys; the root's version after it.

        ConflictError before there is a repository, UntrustedError for a change that breaks a rule.
        """
        if len(update.delegated) > MAX_PUBLISHERS:
            raise InvalidInputError(
                f"{len(update.delegated)} publishers are more than {MAX_PUBLISHERS}",
                advice="Change fewer at once.",
            )
        now = self._clock()
        arguments = {
            "root": _digest(update.root) if update.root else "",
            "targets": _digest(update.targets) if update.targets else "",
            "delegated": {name: _digest(data) for name, data in update.delegated.items()},
        }

        async def act(tx: Transaction) -> str:
            current = await _current(tx)
            root = update.root or current["root"]
            changed = accept_update(current, update, self._keys.named_by(root), now=now)
            await trust_metadata.add(tx, changed, now)
            tx.after_commit(lambda: self._keys.settle(root))
            return "image repository"

        mutation = Mutation(caller.actor, request_id, "trust.update", arguments, now)
        await once(self._database, mutation, act)
        log.info(
            "trust_updated root=%s targets=%s publishers=%s",
            bool(update.root),
            bool(update.targets),
            ",".join(sorted(update.delegated)),
        )
        return (await self.state()).root_version

    async def metadata(self, name: str) -> bytes:
        """One metadata file, by the name that agents know it by."""
        if not METADATA_NAME.fullmatch(name):
            raise InvalidInputError(
                f"{name[:80]!r} is not the name of a metadata file",
                advice="Names look like timestamp.json and 3.root.json.",
            )
        async with self._database.read() as tx:
            data = await trust_metadata.file(tx, name)
        if data is None:
            raise NotFoundError(
                f"there is no metadata file {name}",
                advice="Run `flotilla keys init` if this server has no image repository yet.",
            )
        return data

    async def refresh(self) -> None:
        """Sign snapshot and timestamp anew when half of their life is over."""
        now = self._clock()
        async with self._database.write() as tx:
            current = await trust_metadata.current(tx)
            changed = {}
            if current:
                # After a crash between a new root and the change to its keys.
                self._keys.settle(current["root"])
                changed = refresh(current, self._keys.current, now=now)
            await trust_metadata.add(tx, changed, now)
        if changed:
            log.info("trust_refreshed roles=%s", ",".join(sorted(changed)))

    # -- chunks

    async def missing(self, digests: Sequence[bytes]) -> list[bytes]:
        if len(digests) > MAX_QUERIED_DIGESTS:
            raise InvalidInputError(
                f"{len(digests)} digests are more than {MAX_QUERIED_DIGESTS}",
                advice="Ask in several calls.",
            )
        return await asyncio.to_thread(self._chunks.missing, digests)

    async def put_chunk(self, data: bytes) -> bool:
        """Keep a chunk, flushed to disk; whether it is new."""
        _, new = await asyncio.to_thread(self._chunks.put, data)
        return new

    # -- releases

    async def publish(
        self, caller: Caller, request_id: str, *, manifest: bytes, targets: bytes
    ) -> StoredRelease:
        """Store a release that its publisher signed and whose files are all here.

        Raises InvalidManifestError, ChunkMismatchError or ConflictError (files), UntrustedError
        (signatures, versions, counters); then nothing has changed.
        """
        release = decode_release(manifest)
        await asyncio.to_thread(self._check_files, release)
        now = self._clock()
        sha256 = _digest(manifest)

        async def act(tx: Transaction) -> str:
            current = await _current(tx)
            accepted = accept_release(current, targets, manifest, self._keys.current, now=now)
            await trust_metadata.add(tx, accepted.changed, now)
            if await releases.find(tx, release.reference) is None:
                stored = StoredRelease(
                    new_id(now), release.reference, release.counter, manifest, sha256, now
                )
                await releases.add(tx, stored)
            return release.reference

        # Devices fetch the manifest as they fetch everything else: by its digest.
        await asyncio.to_thread(self._chunks.put, manifest)
        arguments = {
            "reference": release.reference,
            "manifest": sha256,
            "targets": _digest(targets),
        }
        mutation = Mutation(caller.actor, request_id, "release.publish", arguments, now)
        done = await once(self._database, mutation, act)
        log.info("release_published release=%s repeated=%s", done.subject, done.repeated)
        return await self.release(done.subject)

    async def releases(self, request: PageRequest) -> Page[StoredRelease]:
        async with self._database.read() as tx:
            return await releases.page(tx, request)

    async def release(self, reference: str) -> StoredRelease:
        async with self._database.read() as tx:
            return await releases.get(tx, reference)

    async def installable(self) -> set[str]:
        """Target paths of the releases that their publishers still list."""
        async with self._database.read() as tx:
            current = await trust_metadata.current(tx)
        return await asyncio.to_thread(installable, current) if current else set()

    def _check_files(self, release: Release) -> None:
        for file in release.files().values():
            self._check_file(file)

    def _check_file(self, file: File) -> None:
        index_digest = bytes.fromhex(file.index)
        if self._chunks.size(index_digest) is None:
            raise self._incomplete(file, "its index")
        index = decode_index_of(file, self._chunks.read(index_digest))
        for chunk in index.chunks:
            size = self._chunks.size(chunk.sha256)
            if size is None:
                raise self._incomplete(file, f"the chunk {chunk.sha256.hex()}")
            if size != chunk.size or size > MAX_CHUNK_BYTES:
                raise InvalidInputError(
                    f"the index of {file.name} gives the chunk {chunk.sha256.hex()} {chunk.size} "
                    f"bytes; it has {size}",
                    advice="Build the model again with `flotilla model build`.",
                )

    @staticmethod
    def _incomplete(file: File, what: str) -> ConflictError:
        return ConflictError(
            f"{file.name} ({file.sha256}) is not complete here: {what} is missing",
            advice="Publish with `flotilla publish`, which uploads what is missing first.",
        )


async def _current(tx: Transaction) -> Roles:
    current = await trust_metadata.current(tx)
    if not current:
        raise ConflictError(
            "this server has no image repository yet", advice="Run `flotilla keys init` first."
        )
    return current


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
