"""Join tokens: created, listed and revoked by operators, redeemed by new boxes."""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from artifact.join_token import JoinToken as PrintedToken
from artifact.join_token import encode_join_token
from controlplane.errors import (
    ConflictError,
    InvalidInputError,
    JoinRefusedError,
    UnauthenticatedError,
)
from controlplane.fleet import check_labels
from controlplane.services.access import Caller, lifetime, secret_digest, shown_once
from controlplane.services.keys.server_keys import ServerKeys
from controlplane.services.mutations import Mutation, once
from controlplane.store import join_tokens, trust_metadata
from controlplane.store.database import Database, Transaction
from controlplane.store.ids import new_id
from controlplane.store.join_tokens import JoinToken
from controlplane.store.paging import Page, PageRequest

MAX_USES: Final = 100_000
MAX_SECRET_CHARACTERS: Final = 128
FIRST_ROOT: Final = "1.root.json"
_CREATE_ANOTHER: Final = "Create another with `flotilla token create`."


@dataclass(frozen=True, slots=True)
class NewJoinToken:
    """A join token just created, and the text that an operator copies to the box."""

    token: JoinToken
    secret: str


class JoinTokenService:
    """Join tokens on the operators' side."""

    def __init__(self, database: Database, keys: ServerKeys, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._keys = keys
        self._clock = clock

    async def create(
        self,
        caller: Caller,
        request_id: str,
        *,
        uses: int,
        lifetime_seconds: float,
        labels: dict[str, str],
    ) -> NewJoinToken:
        """Create a join token.

        Raises ConflictError before the image repository has a root, which the token must name.
        """
        now = self._clock()
        if not 1 <= uses <= MAX_USES:
            raise InvalidInputError(
                f"{uses} uses are not within 1 to {MAX_USES}", advice="Give --uses."
            )
        check_labels(labels)
        secret = secrets.token_urlsafe(24)
        token = JoinToken(
            id=new_id(now),
            secret_sha256=secret_digest(secret),
            uses_left=uses,
            created_at=now,
            expires_at=lifetime(lifetime_seconds, now),
            revoked=False,
            labels=labels,
        )
        async with self._database.read() as tx:
            root = await trust_metadata.file(tx, FIRST_ROOT)
        if root is None:
            raise ConflictError(
                "there is no image repository yet; a join token names its root",
                advice="Run `flotilla keys init` first.",
            )

        async def act(tx: Transaction) -> str:
            await join_tokens.add(tx, token)
            return token.id

        arguments = {"uses": uses, "lifetime_seconds": lifetime_seconds, "labels": labels}
        mutation = Mutation(caller.actor, request_id, "join-token.create", arguments, now)
        done = await once(self._database, mutation, act)
        if done.repeated:
            raise shown_once("join token", done.subject)
        printed = PrintedToken(
            secret=secret,
            ca=self._keys.authorities.current.sha256,
            root=hashlib.sha256(root).hexdigest(),
            director=hashlib.sha256(self._keys.director.first_root).hexdigest(),
        )
        return NewJoinToken(token, encode_join_token(printed))

    async def page(self, request: PageRequest) -> Page[JoinToken]:
        async with self._database.read() as tx:
            return await join_tokens.page(tx, request)

    async def revoke(self, caller: Caller, request_id: str, token_id: str) -> JoinToken:
        async def act(tx: Transaction) -> str:
            token = await join_tokens.get(tx, token_id)
            await join_tokens.revoke(tx, token.id)
            return token.id

        mutation = Mutation(
            caller.actor, request_id, "join-token.revoke", {"id": token_id}, self._clock()
        )
        done = await once(self._database, mutation, act)
        async with self._database.read() as tx:
            return await join_tokens.get(tx, done.subject)


async def usable_token(tx: Transaction, secret: str, now: datetime) -> JoinToken:
    """Return the token of a secret.

    Raises UnauthenticatedError if it is unknown, JoinRefusedError if it was revoked or has expired.
    """
    plausible = len(secret) <= MAX_SECRET_CHARACTERS
    token = await join_tokens.find_by_secret(tx, secret_digest(secret)) if plausible else None
    if token is None:
        raise UnauthenticatedError(
            "the join token is unknown to this server",
            advice="Copy the whole token, and check that it is from this server. "
            + _CREATE_ANOTHER,
        )
    if token.revoked:
        raise JoinRefusedError(f"join token {token.id} was revoked", advice=_CREATE_ANOTHER)
    if token.expires_at <= now:
        raise JoinRefusedError(
            f"join token {token.id} expired at {token.expires_at.isoformat()}",
            advice=_CREATE_ANOTHER,
        )
    return token


def check_admits(token: JoinToken, *, used: bool, known: bool) -> None:
    """Raise JoinRefusedError unless the token has a use left or was used by this key before.

    ``used``: this key has used this token. ``known``: this key belongs to a device.
    """
    if used and not known:
        raise JoinRefusedError(
            f"this key has used join token {token.id} for a device that was retired",
            advice=_CREATE_ANOTHER,
        )
    if token.uses_left < 1 and not used:
        raise JoinRefusedError(
            f"all uses of join token {token.id} are spent", advice=_CREATE_ANOTHER
        )


def merge_labels(requested: dict[str, str], token_labels: dict[str, str]) -> dict[str, str]:
    """Return the labels of a new device: a box may add to those of its token, not change them."""
    for key in requested.keys() & token_labels.keys():
        if requested[key] != token_labels[key]:
            raise InvalidInputError(
                f"the label {key}={requested[key][:63]!r} contradicts the join token's "
                f"{token_labels[key]!r}",
                advice=f"Leave --label {key} out, or use another token.",
            )
    merged = {**requested, **token_labels}
    check_labels(merged)
    return merged
