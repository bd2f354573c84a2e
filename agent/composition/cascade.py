"""Cascades: generate with the small model first, and escalate if its answer is not good enough."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from artifact.manifest import Escalation
from runtimes.base import Piece, Sampling, Usage


class Pieces(Protocol):
    """The interface of agent.supervisor.Generation; ``usage`` is set once it is exhausted."""

    usage: Usage | None

    def __aiter__(self) -> AsyncIterator[list[Piece]]: ...

    async def aclose(self) -> None:
        """Stop generating."""


@dataclass(frozen=True, slots=True)
class TriedAnswer:
    """The answer of a step; ``escalation_reason`` is empty if it is good enough."""

    pieces: list[Piece]
    usage: Usage | None
    escalation_reason: str


def limit_sampling(sampling: Sampling, escalation: Escalation) -> Sampling:
    """Return the sampling of a step that is not the last: bounded, with the needed figures."""
    longest = escalation.max_tokens or sampling.max_tokens
    return replace(
        sampling,
        max_tokens=min(sampling.max_tokens, longest),
        logprobs=sampling.logprobs or escalation.below_mean_log_probability is not None,
    )


async def try_answer(
    generation: Pieces,
    escalation: Escalation,
    allowed_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> TriedAnswer:
    """Read a generation to its end, or until a refusal shows that it must be escalated.

    ``allowed_tokens`` is the caller's limit: an answer cut off there is not too long. The usage of
    an answer that was stopped early counts its pieces and the time after the first.
    """
    pieces: list[Piece] = []
    first_at: float | None = None
    refusals = PhraseFinder(escalation.refusals)
    async for batch in generation:
        pieces += batch
        first_at = clock() if first_at is None else first_at
        if refusals.find("".join(piece.text for piece in batch)):
            usage = generation.usage or Usage(0, len(pieces), 0.0, clock() - first_at)
            return TriedAnswer(pieces, usage, "refusal")
    # The step was limited to ``longest`` tokens, so only the cut shows that it had more to write.
    cut_off = bool(pieces) and pieces[-1].finish_reason == "length"
    longest = escalation.max_tokens
    if cut_off and longest is not None and len(pieces) >= longest and allowed_tokens > longest:
        return TriedAnswer(pieces, generation.usage, "too_long")
    least = escalation.below_mean_log_probability
    known = [piece.logprob for piece in pieces if piece.logprob is not None]
    if least is not None and known and sum(known) / len(known) < least:
        return TriedAnswer(pieces, generation.usage, "unsure")
    return TriedAnswer(pieces, generation.usage, "")


class PhraseFinder:
    """Finds phrases, ignoring case, in a text that arrives in parts.

    Keeps only the end of the text in which a phrase may have begun, so that the cost of a part
    does not grow with the text.
    """

    def __init__(self, phrases: Sequence[str]) -> None:
        self._phrases = [phrase.casefold() for phrase in phrases]
        self._longest = max(map(len, self._phrases), default=0)
        self._end = ""

    def find(self, text: str) -> bool:
        """Append a part of the text; return True if a phrase ends in it."""
        # Case folding works per character, so folding the parts equals folding the whole.
        text = self._end + text.casefold()
        self._end = text[max(len(text) - self._longest + 1, 0) :]
        return any(phrase in text for phrase in self._phrases)


class Replay:
    """A tried answer as a generation, for sending it to the caller."""

    def __init__(self, answer: TriedAnswer) -> None:
        self.usage = answer.usage
        self._pieces = list(answer.pieces)

    async def __aiter__(self) -> AsyncIterator[list[Piece]]:
        if self._pieces:
            yield self._pieces

    async def aclose(self) -> None:
        """Do nothing: the generation has ended."""
