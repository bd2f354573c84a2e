"""Verification of both TUF repositories: this side fetches metadata, the notary checks it."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Protocol

from agent.errors import AgentError, SourceUnavailableError
from agent.journal import Assignment
from agent.link.connection import METADATA_SECONDS
from agent.notary import Ask, expect
from agent.notary import questions as q
from artifact.errors import ArtifactError, UntrustedError
from artifact.trust.floors import Floors
from artifact.trust.statements import NOT_THE_TRUSTED_ONE, Directive, VerifiedRelease

log = logging.getLogger(__name__)

# As in artifact.trust.client, whose import (python-tuf) would cost the idle daemon 14 MiB.
_ROOT_FLOOR: Final = "director/root"
_FETCH_SECONDS: Final = METADATA_SECONDS + 5
# python-tuf follows at most 256 roots at once; the other roles add a few files.
MAX_FILES: Final = 300


class MetadataSource(Protocol):
    """A source of the image repository's metadata: agent.link.connection.Connection."""

    async def metadata(self, name: str) -> bytes | None:
        """Fetch a metadata file; None if the name does not exist. SourceUnavailableError."""


class StreamedVerifier:
    """Implements agent.update.steps.Verifier. ``ask`` sends questions to the notary."""

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
        """Verify what the director signed for this assignment; UntrustedError."""
        if assignment.director is None:
            raise UntrustedError(
                f"the assignment {assignment.generation} is not signed",
                advice="Update the server: newer versions sign assignments.",
            )
        question = q.Direct(
            device_id=self._device_id,
            metadata=assignment.director,
            now=self._clock(),
            floors=dict(self._floors.floors()),
        )
        return expect(q.Directed, await self._answer_to(question)).directive

    async def follow_roots(self, assignment: Assignment) -> None:
        """Adopt the director's new root even if the assignment itself is already known.

        Signatures by the keys of earlier roots are worthless afterwards.
        """
        signed = assignment.director
        # Root 1 is pinned at enrolment and not sent, so ``roots`` starts at version 2.
        if signed is None or len(signed.roots) < self._floors.floors().get(_ROOT_FLOOR, 1):
            return
        try:
            await self.directive(assignment)
        except (ArtifactError, AgentError) as error:
            log.warning("director_root_refused error=%s", ascii(str(error)))

    async def resolve(self, reference: str) -> VerifiedRelease:
        """Verify what publishers signed for a release; UntrustedError, SourceUnavailableError."""
        metadata: dict[str, bytes | None] = {}
        while len(metadata) < MAX_FILES:
            question = q.Resolve(
                reference=reference,
                metadata=metadata,
                now=self._clock(),
                floors=dict(self._floors.floors()),
            )
            answer = await self._answer_to(question)
            if not isinstance(answer, q.Missing):
                return expect(q.Resolved, answer).release
            metadata[answer.name] = await self._fetched(answer.name)
        raise UntrustedError(
            f"{reference} needs more than {MAX_FILES} metadata files to verify",
            advice=NOT_THE_TRUSTED_ONE,
        )

    async def _fetched(self, name: str) -> bytes | None:
        try:
            async with asyncio.timeout(_FETCH_SECONDS):
                return await self._connection.metadata(name)
        except TimeoutError:
            raise SourceUnavailableError(
                f"{name} did not arrive within {_FETCH_SECONDS:.0f} s"
            ) from None

    async def _answer_to(self, question: q.Question) -> q.Answer:
        """Ask the notary, and store raised floors before the answer is acted on."""
        answer = await self._ask(question)
        if answer.floors:
            await asyncio.to_thread(self._floors.raise_floors, answer.floors)
        return answer
