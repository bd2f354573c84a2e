"""OpenAI's answers of completions and chat completions, whole or as server-sent events."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from agent.composition.cascade import Pieces
from agent.errors import AgentError
from agent.gateway.http.exchange import Exchange
from agent.gateway.recording import Recording
from agent.gateway.refusals import refusal_of
from runtimes.base import Piece, Usage

_DONE: Final = b"data: [DONE]\n\n"


class TextAnswer(ABC):
    """Builds and sends the answer to one request; subclasses define the shape of a choice."""

    identifier_prefix: str
    whole_object: str
    event_object: str

    def __init__(self, model: str, request_id: str, *, logprobs: bool = False) -> None:
        self._logprobs = logprobs
        self._head = {
            "id": f"{self.identifier_prefix}-{request_id}",
            "created": int(time.time()),
            "model": model,
        }

    @abstractmethod
    def whole_choice(
        self, text: str, finish_reason: str, pieces: Sequence[Piece]
    ) -> dict[str, Any]:
        """Return the choice of a whole answer."""

    @abstractmethod
    def event_choice(
        self, text: str, finish_reason: str | None, pieces: Sequence[Piece]
    ) -> dict[str, Any]:
        """Return the choice of one event."""

    @abstractmethod
    def log_probabilities(self, pieces: Sequence[Piece]) -> object:
        """Return the log-probabilities of the chosen tokens in this answer's shape."""

    def chosen(self, pieces: Sequence[Piece]) -> object:
        """Return the log-probabilities if the request asked for them."""
        return self.log_probabilities(pieces) if self._logprobs else None

    def opening(self) -> bytes:
        """Return the events before the first text."""
        return b""

    async def whole(self, exchange: Exchange, generation: Pieces, recording: Recording) -> None:
        """Answer with one document once the whole text is generated."""
        generated: list[Piece] = []
        async for pieces in generation:
            recording.count_tokens(len(pieces))
            generated += pieces
        text = "".join([piece.text for piece in generated])
        finish_reason = (generated[-1].finish_reason if generated else None) or "length"
        recording.usage = generation.usage
        await exchange.json(
            200,
            self._document(
                self.whole_object,
                [self.whole_choice(text, finish_reason, generated)],
                **_costs(recording),
            ),
        )

    async def stream(
        self,
        exchange: Exchange,
        generation: Pieces,
        recording: Recording,
        *,
        include_usage: bool,
    ) -> None:
        """Answer with one event per token.

        The status is sent with the first token: a failure before it is an HTTP error, a failure
        after it is an event with ``error`` and no [DONE].
        """
        # The last piece is held back: its finish_reason belongs into the event with the timings.
        last = Piece("", None, "length")
        try:
            async for pieces in generation:
                recording.count_tokens(len(pieces))
                events = b""
                if not exchange.started:
                    await exchange.open_events()
                    events = self.opening()
                # Popped from the list: its event follows after the loop, with the timings.
                if pieces[-1].finish_reason is not None:
                    last = pieces.pop()
                events += b"".join(
                    self._event([self.event_choice(piece.text, None, [piece])])
                    for piece in pieces
                    if piece.text or self._logprobs
                )
                if events:
                    await exchange.events(events)
        except AgentError as error:
            if exchange.started:
                await exchange.events(_event_of(refusal_of(error).openai()))
                await exchange.close_events()
            raise
        recording.usage = generation.usage
        costs = _costs(recording)
        choice = self.event_choice(last.text, last.finish_reason, [last])
        end = self._event([choice], timings=costs["timings"])
        if include_usage:
            end += self._event([], usage=costs["usage"])
        if not exchange.started:
            await exchange.open_events()
        await exchange.events(end + _DONE)
        await exchange.close_events()

    def _event(self, choices: list[dict[str, Any]], **more: object) -> bytes:
        return _event_of(self._document(self.event_object, choices, **more))

    def _document(
        self, kind: str, choices: list[dict[str, Any]], **more: object
    ) -> dict[str, object]:
        return {**self._head, "object": kind, "choices": choices, **more}


class CompletionAnswer(TextAnswer):
    """/v1/completions."""

    identifier_prefix = "cmpl"
    whole_object = event_object = "text_completion"

    def __init__(self, model: str, request_id: str, *, logprobs: bool = False) -> None:
        super().__init__(model, request_id, logprobs=logprobs)
        self._offset = 0

    def whole_choice(
        self, text: str, finish_reason: str, pieces: Sequence[Piece]
    ) -> dict[str, Any]:
        return self.event_choice(text, finish_reason, pieces)

    def event_choice(
        self, text: str, finish_reason: str | None, pieces: Sequence[Piece]
    ) -> dict[str, Any]:
        return {
            "index": 0,
            "text": text,
            "finish_reason": finish_reason,
            "logprobs": self.chosen(pieces),
        }

    def log_probabilities(self, pieces: Sequence[Piece]) -> object:
        offsets = []
        for piece in pieces:
            offsets.append(self._offset)
            self._offset += len(piece.text)
        return {
            "tokens": [piece.text for piece in pieces],
            "token_logprobs": [piece.logprob for piece in pieces],
            "top_logprobs": None,
            "text_offset": offsets,
        }


class ChatAnswer(TextAnswer):
    """/v1/chat/completions."""

    identifier_prefix = "chatcmpl"
    whole_object = "chat.completion"
    event_object = "chat.completion.chunk"

    def opening(self) -> bytes:
        delta = {"role": "assistant", "content": ""}
        return self._event([{"index": 0, "delta": delta, "finish_reason": None}])

    def whole_choice(
        self, text: str, finish_reason: str, pieces: Sequence[Piece]
    ) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        return self._choice("message", message, finish_reason, pieces)

    def event_choice(
        self, text: str, finish_reason: str | None, pieces: Sequence[Piece]
    ) -> dict[str, Any]:
        return self._choice("delta", {"content": text} if text else {}, finish_reason, pieces)

    def _choice(
        self,
        kind: str,
        message: dict[str, str],
        finish_reason: str | None,
        pieces: Sequence[Piece],
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, kind: message, "finish_reason": finish_reason}
        if self._logprobs:
            choice["logprobs"] = self.chosen(pieces)
        return choice

    def log_probabilities(self, pieces: Sequence[Piece]) -> object:
        content = [
            {
                "token": piece.text,
                "logprob": piece.logprob,
                "bytes": list(piece.text.encode()),
                "top_logprobs": [],
            }
            for piece in pieces
        ]
        return {"content": content, "refusal": None}


def _event_of(document: object) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


def _costs(recording: Recording) -> dict[str, object]:
    usage = recording.usage or Usage(0, recording.tokens, 0.0, 0.0)
    read = usage.prompt_tokens - usage.cached_prompt_tokens
    return {
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.generated_tokens,
            "total_tokens": usage.prompt_tokens + usage.generated_tokens,
            **_cached(usage),
        },
        "timings": {
            "ttft_ms": _milliseconds(recording.ttft_seconds),
            "cache_n": usage.cached_prompt_tokens,
            "prompt_n": read,
            "prompt_ms": _milliseconds(usage.prefill_seconds),
            "prompt_per_second": _rate(read, usage.prefill_seconds),
            "predicted_n": usage.generated_tokens,
            "predicted_ms": _milliseconds(usage.decode_seconds),
            # The first token comes from the prefill; decoding generates the others.
            "predicted_per_second": _rate(usage.generated_tokens - 1, usage.decode_seconds),
        },
    }


def _cached(usage: Usage) -> dict[str, object]:
    """Return OpenAI's field for prompt tokens that were in the cache; empty if there were none."""
    cached = usage.cached_prompt_tokens
    return {"prompt_tokens_details": {"cached_tokens": cached}} if cached else {}


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 3) if count > 0 and seconds > 0 else None
