"""What both repositories say, verified by the notary: fed from the connection or the assignment."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Protocol

from agent.errors import AgentError, SourceUnavailableError
from agent.journal import Assignment
from agent.link.connection import UNARY_SECONDS
from agent.notary import Ask, expect
from agent.notary import questions as q
from artifact.errors import ArtifactError, UntrustedError
from artifact.trust.floors import Floors
from artifact.trust.statements import NOT_THE_TRUSTED_ONE, Directive, VerifiedRelease

log = logging.getLogger(__name__)

# Of artifact.trust.client, which takes more memory to import than the daemon has for it.
_ROOT_FLOOR: Final = "director/root"
_PATIENCE_SECONDS: Final = UNARY_SECONDS + 5
# python-tuf follows 256 roots in one go; the other roles are a handful.
MAX_FILES: Final = 300


class MetadataSource(Protocol):
    """Where the image repository's metadata comes from: agent.link.connection.Connection."""

    async def metadata(self, name: str) -> bytes | None:
        """None when there is none of that name; SourceUnavailableError."""


class StreamedVerifier:
    """Implements agent.update.steps.Verifier. ``ask`` is the notary's (agent.notary)."""

    def __init__(
        self,
        device_id: str,
        connection: MetadataSource,
        floors: Floors,
        ask: Ask,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._device_id = device_id
        self._connection = connection
        self._floors = floors
        self._ask = ask
        self._clock = clock

    async def directive(self, assignment: Assignment) -> Directive:
        """What the director signed about this assignment; UntrustedError."""
        if assignment.director is None:
            raise UntrustedError(
                f"the assignment {assignment.generation} is not signed",
                advice="Update the server, which signs what it assigns.",
            )
        question = q.Direct(
            device_id=self._device_id,
            metadata=assignment.director,
            now=self._clock(),
            floors=dict(self._floors.floors()),
        )
        return expect(q.Directed, await self._heard(question)).directive

    async def follow_roots(self, assignment: Assignment) -> None:
        """Go along with the director's new root, though the assignment may be no news.

        What the keys before it sign is worth nothing from then on.
        """
        signed = assignment.director
        # The first is the one that is pinned, and does not come along.
        if signed is None or len(signed.roots) < self._floors.floors().get(_ROOT_FLOOR, 1):
            return
        try:
            await self.directive(assignment)
        except (ArtifactError, AgentError) as error:
            log.warning("director_root_refused error=%s", ascii(str(error)))

    async def resolve(self, reference: str) -> VerifiedRelease:
        """What the publisher signs; UntrustedError, or SourceUnavailableError."""
        metadata: dict[str, bytes | None] = {}
        while len(metadata) < MAX_FILES:
            question = q.Resolve(
                reference=reference,
                metadata=metadata,
                now=self._clock(),
                floors=dict(self._floors.floors()),
            )
            answer = await self._heard(question)
            if not isinstance(answer, q.Missing):
                return expect(q.Resolved, answer).release
            metadata[answer.name] = await self._fetched(answer.name)
        raise UntrustedError(
            f"{reference} cannot be verified with {MAX_FILES} files", advice=NOT_THE_TRUSTED_ONE
        )

    async def _fetched(self, name: str) -> bytes | None:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await self._connection.metadata(name)
        except TimeoutError:
            raise SourceUnavailableError(f"{name} did not come in time") from None

    async def _heard(self, question: q.Question) -> q.Answer:
        """The answer, with its floors on the disk before anything is done about it."""
        answer = await self._ask(question)
        if answer.floors:
            await asyncio.to_thread(self._floors.raise_floors, answer.floors)
        return answer
