"""Idempotent changes: each runs once per request id and is recorded in the audit log."""

import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from artifact.manifest import canonical_json
from controlplane.errors import ConflictError, InvalidInputError
from controlplane.store import audit, requests
from controlplane.store.database import Database, Transaction
from controlplane.store.requests import DoneRequest

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Mutation:
    """One requested change.

    ``arguments`` holds everything that determines the change, as JSON types and without secrets.
    """

    actor: str
    request_id: str
    action: str
    arguments: object
    at: datetime

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(canonical_json([self.action, self.arguments])).hexdigest()


@dataclass(frozen=True, slots=True)
class Done:
    """The id of the subject that was made or changed; ``repeated`` if an earlier call did it."""

    subject: str
    repeated: bool


async def once(
    database: Database, mutation: Mutation, act: Callable[[Transaction], Awaitable[str]]
) -> Done:
    """Run ``act`` in a transaction, unless this request was carried out before.

    ``act`` returns the id of the subject that it made or changed. Raises InvalidInputError for a
    malformed request id, ConflictError for one that was used for a different change.
    """
    if not REQUEST_ID.fullmatch(mutation.request_id):
        raise InvalidInputError(
            f"{mutation.request_id[:80]!r} is not a request id",
            advice="Send a fresh random id (a UUID) with every change, and the same one to retry.",
        )
    # The remembered request, the change and its audit event commit together. On PostgreSQL two
    # calls with one id meet at the primary key of the request, and one of them fails.
    async with database.write() as tx:
        known = await requests.find(tx, mutation.actor, mutation.request_id)
        if known is not None:
            _check_same(mutation, known)
            return Done(known.subject, repeated=True)
        subject = await act(tx)
        done = DoneRequest(mutation.action, mutation.fingerprint, subject)
        await requests.remember(tx, mutation.actor, mutation.request_id, done, mutation.at)
        await audit.append(
            tx,
            at=mutation.at,
            actor=mutation.actor,
            action=mutation.action,
            subject=subject,
            detail=canonical_json(mutation.arguments).decode(),
        )
        return Done(subject, repeated=False)


def _check_same(mutation: Mutation, known: DoneRequest) -> None:
    if (known.action, known.fingerprint) != (mutation.action, mutation.fingerprint):
        raise ConflictError(
            f"request id {mutation.request_id!r} was already used for {known.action} of "
            f"{known.subject}",
            advice="Send a fresh request id for a different change.",
        )
