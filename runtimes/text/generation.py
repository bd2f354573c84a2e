"""The way from next tokens to text, shared by the engines: pieces, stop strings, limits, usage.

An engine provides a ``TokenModel``; callers see the same behaviour with every runtime.
"""

import codecs
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import NamedTuple, Protocol

from runtimes.base import Piece, Sampling, Steps, Usage
from runtimes.errors import ContextExceededError, InvalidInputError, LoadError
from runtimes.text.sampling_bounds import check_sampling

MAX_TEXT_CHARACTERS = 1 << 22


class Chosen(NamedTuple):
    """A token, and the logarithm of its probability if requested."""

    token: int
    logprob: float | None = None


class TokenModel(Protocol):
    """A language model as a source of tokens, for one generation at a time."""

    @property
    def context_length(self) -> int: ...

    def start(self, tokens: Sequence[int], sampling: Sampling) -> Steps[Chosen]:
        """Reset the state, process a prompt, and return the first token after it."""

    def step(self, token: int) -> Chosen:
        """Process one token and return the next."""

    def piece(self, token: int) -> bytes:
        """Return the UTF-8 bytes of a token, possibly half a character; empty for control."""

    def is_end(self, token: int) -> bool:
        """Return True if the model ends its text with this token."""


class TokenSource(Protocol):
    """The tokens of one generation, and their cost so far."""

    prefill_seconds: float
    decode_seconds: float
    cached_tokens: int

    def poll(self) -> Chosen | None:
        """Return the next token, or None if a bounded amount of work has not produced it."""

    def close(self) -> None:
        """Stop producing tokens; may be called twice."""


class Vocabulary(Protocol):
    """Conversion of tokens to text."""

    def piece(self, token: int) -> bytes: ...

    def is_end(self, token: int) -> bool: ...


class TextGeneration:
    """A generation over a source of tokens: one piece per token, some with empty text.

    A piece never ends within a character or within a possible stop string. A stop string and the
    text after it are left out. After ``room`` tokens the text ends with reason ``length``.
    """

    def __init__(
        self,
        source: TokenSource,
        vocabulary: Vocabulary,
        sampling: Sampling,
        *,
        prompt_tokens: int,
        room: int,
    ) -> None:
        self._source = source
        self._vocabulary = vocabulary
        self._text = StreamedText(sampling.stop)
        self._stop_tokens = frozenset(sampling.stop_token_ids)
        self._prompt_tokens = prompt_tokens
        self._room = room
        self._generated = 0
        self._over = False

    @property
    def usage(self) -> Usage:
        """Cost so far."""
        return Usage(
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated,
            prefill_seconds=self._source.prefill_seconds,
            decode_seconds=self._source.decode_seconds,
            cached_prompt_tokens=self._source.cached_tokens,
        )

    @property
    def over(self) -> bool:
        """True if no further piece follows."""
        return self._over

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        while (piece := self.poll()) is None:
            pass
        return piece

    def poll(self) -> Piece | None:
        """Return the next piece, or None if a bounded amount of work has not produced it."""
        if self._over:
            raise StopIteration
        try:
            chosen = self._source.poll()
        except BaseException:
            self.close()
            raise
        if chosen is None:
            return None
        piece = self._piece_of(chosen)
        if piece.finish_reason is not None:
            self.close()
        return piece

    def close(self) -> None:
        """Stop generating; may be called at any time."""
        self._over = True
        self._source.close()

    def _piece_of(self, chosen: Chosen) -> Piece:
        token, logprob = chosen
        self._generated += 1
        if token in self._stop_tokens or self._vocabulary.is_end(token):
            return Piece(self._text.rest(), token, "stop", logprob)
        fresh = self._text.feed(self._vocabulary.piece(token))
        if self._text.stopped:
            return Piece(fresh, token, "stop", logprob)
        if self._generated >= self._room:
            return Piece(fresh + self._text.rest(), token, "length", logprob)
        return Piece(fresh, token, None, logprob)


class TokenGeneration(TextGeneration):
    """A generation with a token model of its own."""

    def __init__(
        self,
        model: TokenModel,
        tokens: Sequence[int],
        sampling: Sampling,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        check_sampling(sampling)
        check_prompt(tokens, model.context_length)
        super().__init__(
            _OwnModel(model, tokens, sampling, clock),
            model,
            sampling,
            prompt_tokens=len(tokens),
            room=room_for(tokens, sampling, model.context_length),
        )


class _OwnModel:
    """Tokens of a token model, one by one and timed."""

    cached_tokens = 0

    def __init__(
        self,
        model: TokenModel,
        tokens: Sequence[int],
        sampling: Sampling,
        clock: Callable[[], float],
    ) -> None:
        self.prefill_seconds = self.decode_seconds = 0.0
        self._model = model
        self._reading = model.start(tokens, sampling)
        self._clock = clock
        self._last: int | None = None

    def poll(self) -> Chosen | None:
        started = self._clock()
        if self._last is None:
            chosen = self._read()
            self.prefill_seconds += self._clock() - started
        else:
            chosen = self._model.step(self._last)
            self.decode_seconds += self._clock() - started
        if chosen is not None:
            self._last = chosen.token
        return chosen

    def _read(self) -> Chosen | None:
        """Return the first token once the prompt is processed."""
        try:
            next(self._reading)
        except StopIteration as over:
            chosen: Chosen = over.value
            return chosen
        return None

    def close(self) -> None:
        """Do nothing: no resource is held."""


class StreamedText:
    """Converts bytes to text as soon as later bytes can no longer change it."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stopped = False
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """Return the text that is certain after these bytes; sets ``stopped`` at a stop string."""
        text = self._held + self._decoder.decode(data)
        found = [position for stop in self._stop if (position := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """Return the withheld text at the end of input, without an incomplete character."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that is a beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def choose_context(wanted: int, trained: int, default: int) -> int:
    """Return the context to load with: ``wanted``, else the model's own up to ``default``.

    ``trained`` is the context of the training, 0 if unknown. Raises LoadError.
    """
    if trained and wanted > trained:
        raise LoadError(
            f"a context of {wanted} tokens is more than the {trained} of the model's training",
            advice="Build the variant with a shorter --context-length.",
        )
    if not wanted and not trained:
        raise LoadError(
            "neither the release nor the model gives a context length",
            advice="Build the variant with --context-length.",
        )
    return wanted or min(trained, default)


def check_prompt(tokens: Sequence[int], context_length: int) -> None:
    """Raise InvalidInputError without a prompt, ContextExceededError without room for a token."""
    if not tokens:
        raise InvalidInputError(
            "the prompt is empty, and this model adds no begin token",
            advice="Send at least one character.",
        )
    if len(tokens) >= context_length:
        raise ContextExceededError(
            f"the prompt has {len(tokens)} tokens; the context holds {context_length} "
            "together with the answer",
            advice="Shorten the prompt, or deploy the model with a longer context.",
        )


def room_for(tokens: Sized, sampling: Sampling, context_length: int) -> int:
    """Return how many tokens may follow a prompt that passed ``check_prompt``."""
    return min(sampling.max_tokens, context_length - len(tokens))


def check_text(text: str) -> None:
    """Raise InvalidInputError for text that no tokenizer accepts."""
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InvalidInputError(
            f"the text has {len(text)} characters; the maximum is {MAX_TEXT_CHARACTERS}",
            advice="Send a shorter text.",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"the text has an unpaired surrogate at {error.start}: {text[error.start]!a}",
            advice="Send whole Unicode characters; JSON escapes some of them as a pair.",
        ) from error


def check_scorable(tokens: Sized) -> None:
    """Raise InvalidInputError unless the text has a token to predict from another."""
    if len(tokens) < 2:  # noqa: PLR2004 - one to start from, one to predict
        raise InvalidInputError(
            f"the text has {len(tokens)} tokens; at least 2 are needed to predict one from another",
            advice="Send a longer text.",
        )
