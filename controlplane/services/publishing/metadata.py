"""The image repository: its start, changes by the offline keys, and online signatures."""

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from artifact.trust.keys import encode_public_key
from artifact.trust.metadata import Roles, version_of
from artifact.trust.repository import initialise, refresh
from artifact.trust.update import Update, accept_update, installable
from controlplane.errors import ConflictError, InvalidInputError, NotFoundError
from controlplane.services.access import Caller
from controlplane.services.keys.online_keys import OnlineKeys
from controlplane.services.mutations import Mutation, once
from controlplane.store import trust_metadata
from controlplane.store.database import Database, Transaction

log = logging.getLogger(__name__)

METADATA_NAME: Final = re.compile(r"([1-9][0-9]{0,9}\.)?[a-z0-9-]{1,64}\.json")
MAX_PUBLISHERS: Final = 256


@dataclass(frozen=True, slots=True)
class TrustState:
    """Public keys of the online roles and of their successors, and the root's version.

    ``root_version`` is 0 before `flotilla keys init`.
    """

    snapshot_key: bytes
    timestamp_key: bytes
    next_snapshot_key: bytes
    next_timestamp_key: bytes
    root_version: int


class ImageRepositoryService:
    """The server's side of the image repository."""

    def __init__(self, database: Database, keys: OnlineKeys, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._keys = keys
        self._clock = clock

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

        Raises ConflictError if there is one already, UntrustedError if the metadata cannot found
        one.
        """
        _check_publisher_count(delegated)
        now = self._clock()
        arguments = {
            "root": digest(root),
            "targets": digest(targets),
            "delegated": {name: digest(data) for name, data in delegated.items()},
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
        """Apply a change signed by the offline keys and return the root's version after it.

        Raises ConflictError before there is a repository, UntrustedError if the change breaks a
        rule.
        """
        _check_publisher_count(update.delegated)
        now = self._clock()
        arguments = {
            "root": digest(update.root) if update.root else "",
            "targets": digest(update.targets) if update.targets else "",
            "delegated": {name: digest(data) for name, data in update.delegated.items()},
        }

        async def act(tx: Transaction) -> str:
            current = await current_roles(tx)
            root = update.root or current["root"]
            changed = accept_update(current, update, self._keys.named_by(root), now=now)
            await trust_metadata.add(tx, changed, now)
            # The key files change only after the commit: a root that was rolled back must not
            # leave the server with keys that the stored root does not name.
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

    async def file(self, name: str) -> bytes:
        """Return one metadata file by the name that agents fetch it by, such as 3.root.json.

        Raises InvalidInputError for any other form of name, NotFoundError if there is no such file.
        """
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
        """Sign snapshot and timestamp again once half of their lifetime has passed."""
        now = self._clock()
        async with self._database.write() as tx:
            current = await trust_metadata.current(tx)
            changed = {}
            if current:
                # A crash may have come between the commit of a new root and the change of the key
                # files that follows it.
                self._keys.settle(current["root"])
                changed = refresh(current, self._keys.current, now=now)
            await trust_metadata.add(tx, changed, now)
        if changed:
            log.info("trust_refreshed roles=%s", ",".join(sorted(changed)))

    async def installable(self) -> set[str]:
        """Return the target paths of the releases that their publishers still list."""
        async with self._database.read() as tx:
            current = await trust_metadata.current(tx)
        return await asyncio.to_thread(installable, current) if current else set()


async def current_roles(tx: Transaction) -> Roles:
    """Return the newest metadata of every role; ConflictError before there is a repository."""
    current = await trust_metadata.current(tx)
    if not current:
        raise ConflictError(
            "this server has no image repository yet", advice="Run `flotilla keys init` first."
        )
    return current


def digest(data: bytes) -> str:
    """Return the SHA-256 in hex, which stands for the bytes in a request's fingerprint."""
    return hashlib.sha256(data).hexdigest()


def _check_publisher_count(delegated: Mapping[str, bytes]) -> None:
    if len(delegated) > MAX_PUBLISHERS:
        raise InvalidInputError(
            f"the change names {len(delegated)} publishers; the maximum is {MAX_PUBLISHERS}",
            advice="Change fewer publishers at once.",
        )
