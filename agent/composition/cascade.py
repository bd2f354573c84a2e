"""Asking the small model first: hear its answer out, and say whether it stands."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from artifact.manifest import Escalation
from runtimes.base import Piece, Sampling, Usage


class Pieces(Protocol):
    """A generation, as callers see it (agent.supervisor.Generation); ``usage`` once exhausted."""

    usage: Usage | None

    def __aiter__(self) -> AsyncIterator[list[Piece]]: ...

    async def aclose(self) -> None:
        """Stops generating."""


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer, and why the next model has to be asked; empty: it stands."""

    pieces: list[Piece]
    usage: Usage | None
    why: str


def attempt(sampling: Sampling, escalation: Escalation) -> Sampling:
    """How a step that is not the last generates: no longer than an answer may get."""
    longest = escalation.max_tokens or sampling.max_tokens
    return replace(
        sampling,
        max_tokens=min(sampling.max_tokens, longest),
        logprobs=sampling.logprobs or escalation.below_mean_log_probability is not None,
    )


async def hear(
    generation: Pieces,
    escalation: Escalation,
    wanted_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Heard:
    """The whole answer, or as much of it as shows that it does not stand.

    ``wanted_tokens`` is what the caller allowed: an answer cut off there is not too long. Of one
    that is not heard out the usage is what came, and how long that took after the first.
    """
    pieces: list[Piece] = []
    first_at: float | None = None
    refusals = Phrases(escalation.refusals)
    async for some in generation:
        pieces += some
        first_at = clock() if first_at is None else first_at
        if refusals.complete("".join(piece.text for piece in some)):
            usage = generation.usage or Usage(0, len(pieces), 0.0, clock() - first_at)
            return Heard(pieces, usage, "refusal")
    cut_off = bool(pieces) and pieces[-1].finish_reason == "length"
    longest = escalation.max_tokens
    if cut_off and longest is not None and len(pieces) >= longest and wanted_tokens > longest:
        return Heard(pieces, generation.usage, "too_long")
    least = escalation.below_mean_log_probability
    known = [piece.logprob for piece in pieces if piece.logprob is not None]
    if least is not None and known and sum(known) / len(known) < least:
        return Heard(pieces, generation.usage, "unsure")
    return Heard(pieces, generation.usage, "")


class Phrases:
    """Finds phrases, in upper or lower case, in a text that comes bit by bit.

    Of the text it keeps only the end in which a phrase may have begun: what a bit costs does not
    grow with the answer.
    """

    def __init__(self, phrases: Sequence[str]) -> None:
        self._phrases = [phrase.casefold() for phrase in phrases]
        self._longest = max(map(len, self._phrases), default=0)
        self._end = ""

    def complete(self, text: str) -> bool:
        """Whether there is a phrase in the text that so goes on."""
        # Folded bit by bit it is the same as folded whole: each character by itself.
        text = self._end + text.casefold()
        self._end = text[max(len(text) - self._longest + 1, 0) :]
        return any(phrase in text for phrase in self._phrases)


class Replay:
    """An answer that was heard out, for its caller."""

    def __init__(self, heard: Heard) -> None:
        self.usage = heard.usage
        self._pieces = list(heard.pieces)

    async def __aiter__(self) -> AsyncIterator[list[Piece]]:
        if self._pieces:
            yield self._pieces

    async def aclose(self) -> None:
        """Nothing runs any more."""
