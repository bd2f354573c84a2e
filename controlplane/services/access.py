"""API tokens, their roles, and the audit log."""

import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from controlplane.errors import ConflictError, InvalidInputError, UnauthenticatedError
from controlplane.services.mutations import Mutation, once
from controlplane.store import api_tokens, audit
from controlplane.store.api_tokens import ApiToken
from controlplane.store.audit import AuditEvent
from controlplane.store.database import Database, Transaction
from controlplane.store.ids import new_id
from controlplane.store.paging import Page, PageRequest

TOKEN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ @-]{0,62}")
MAX_LIFETIME_SECONDS: Final = 10 * 365 * 86400.0
MAX_SECRET_CHARACTERS: Final = 128


class Role(StrEnum):
    """A token's role. Publishers cannot operate, and operators cannot publish."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    PUBLISHER = "publisher"
    ADMIN = "admin"

    def includes(self, needed: "Role") -> bool:
        """Return whether this role includes another: all include viewer, admin includes all."""
        return self is Role.ADMIN or needed in {self, Role.VIEWER}


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller. ``actor`` is its name in the audit log."""

    actor: str
    role: Role


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token just created, and its secret, which is not stored and cannot be shown again."""

    token: ApiToken
    secret: str


def secret_digest(secret: str) -> str:
    """Return the SHA-256 of a secret, the form in which it is stored.

    Secrets are random and at least 192 bits long, so no slow password hash is needed.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def parse_role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError:
        raise InvalidInputError(
            f"{name[:40]!r} is not a role", advice="Use viewer, operator, publisher or admin."
        ) from None


def lifetime(seconds: float, now: datetime) -> datetime:
    """Return when a lifetime ends; InvalidInputError unless it is within MAX_LIFETIME_SECONDS."""
    if not 0 < seconds <= MAX_LIFETIME_SECONDS:
        raise InvalidInputError(
            f"a lifetime of {seconds} s is not within 0 to {MAX_LIFETIME_SECONDS:.0f} s",
            advice="Give the token a shorter lifetime, and create another when it ends.",
        )
    return now + timedelta(seconds=seconds)


def shown_once(kind: str, subject: str) -> ConflictError:
    """Return the error for a repeated request for a secret, which only the first answer had."""
    return ConflictError(
        f"this request already created the {kind} {subject}; its secret was shown once",
        advice="If that answer was lost, revoke it, and create another with a fresh request id.",
    )


class AccessService:
    """Authenticates callers, manages API tokens, and lists audit events."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    async def authenticate(self, secret: str) -> Caller:
        """Return the caller of a secret.

        Raises UnauthenticatedError if the token is unknown, expired or revoked.
        """
        async with self._database.read() as tx:
            token = None
            if len(secret) <= MAX_SECRET_CHARACTERS:
                token = await api_tokens.find_by_secret(tx, secret_digest(secret))
        reason = None
        if token is None:
            reason = "is unknown here"
        elif token.revoked:
            reason = f"({token.name!r}) was revoked"
        elif token.expires_at is not None and token.expires_at <= self._clock():
            reason = f"({token.name!r}) expired at {token.expires_at.isoformat()}"
        if token is None or reason is not None:
            raise UnauthenticatedError(
                f"the API token {reason}",
                advice="Ask an admin for a new one: `flotilla access token create`.",
            )
        return Caller(f"token:{token.name}:{token.id}", Role(token.role))

    async def create_token(
        self, caller: Caller, request_id: str, name: str, role: str, lifetime_seconds: float
    ) -> NewToken:
        """Create a token; a lifetime of 0 means that it does not expire."""
        now = self._clock()
        if not TOKEN_NAME.fullmatch(name):
            raise InvalidInputError(
                f"{name[:80]!r} is not a name for a token",
                advice="Use up to 63 letters, digits, blanks and ._@- characters.",
            )
        secret = secrets.token_urlsafe(32)
        token = ApiToken(
            id=new_id(now),
            name=name,
            role=parse_role(role),
            secret_sha256=secret_digest(secret),
            created_at=now,
            expires_at=lifetime(lifetime_seconds, now) if lifetime_seconds else None,
            revoked=False,
        )

        async def act(tx: Transaction) -> str:
            await api_tokens.add(tx, token)
            return token.id

        arguments = {"name": name, "role": token.role, "lifetime_seconds": lifetime_seconds}
        mutation = Mutation(caller.actor, request_id, "api-token.create", arguments, now)
        done = await once(self._database, mutation, act)
        # The secret of the first answer is not stored, so a repeated request cannot return it.
        if done.repeated:
            raise shown_once("API token", done.subject)
        return NewToken(token, secret)

    async def list_tokens(self, request: PageRequest) -> Page[ApiToken]:
        async with self._database.read() as tx:
            return await api_tokens.page(tx, request)

    async def revoke_token(self, caller: Caller, request_id: str, token_id: str) -> ApiToken:
        async def act(tx: Transaction) -> str:
            token = await api_tokens.get(tx, token_id)
            if token.role == Role.ADMIN and not await api_tokens.other_usable(
                tx, Role.ADMIN, token.id, self._clock()
            ):
                raise ConflictError(
                    f"{token.name!r} is the last admin token that is usable",
                    advice="Create another first: `flotilla access token create --role admin`.",
                )
            await api_tokens.revoke(tx, token.id)
            return token.id

        mutation = Mutation(
            caller.actor, request_id, "api-token.revoke", {"id": token_id}, self._clock()
        )
        done = await once(self._database, mutation, act)
        async with self._database.read() as tx:
            return await api_tokens.get(tx, done.subject)

    async def list_audit_events(self, request: PageRequest) -> Page[AuditEvent]:
        async with self._database.read() as tx:
            return await audit.page(tx, request)

    async def has_tokens(self) -> bool:
        async with self._database.read() as tx:
            return await api_tokens.any_exists(tx)

    async def add_local_admin(self, secret: str, name: str) -> None:
        """Store an admin token, whose secret the caller writes into the data directory."""
        now = self._clock()
        token = ApiToken(
            id=new_id(now),
            name=name,
            role=Role.ADMIN,
            secret_sha256=secret_digest(secret),
            created_at=now,
            expires_at=None,
            revoked=False,
        )
        async with self._database.write() as tx:
            await api_tokens.add(tx, token)
            await audit.append(
                tx, at=now, actor="server", action="api-token.create", subject=token.id
            )
