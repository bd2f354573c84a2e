"""Checks of texts to embed and of their vectors, shared by the engines."""

import math
from collections.abc import Sequence
from typing import Final

from runtimes.errors import ContextExceededError, InvalidInputError, RuntimeFault
from runtimes.text.generation import check_text

MAX_TEXTS: Final = 2048
# Default number of concurrent requests: short ones take turns with those of many texts.
DEFAULT_PARALLEL: Final = 4


def check_texts(texts: Sequence[str]) -> None:
    """Raise InvalidInputError unless there are 1 to ``MAX_TEXTS`` whole, non-empty texts."""
    if not 1 <= len(texts) <= MAX_TEXTS:
        raise InvalidInputError(
            f"the request has {len(texts)} texts", advice=f"Send 1 to {MAX_TEXTS}."
        )
    for text in texts:
        check_text(text)
        if not text:
            raise InvalidInputError(
                "a text is empty", advice="Send at least one character in each."
            )


def check_length(tokens: int, context_length: int) -> None:
    """Raise InvalidInputError for a text without tokens, ContextExceededError for one too long."""
    if not tokens:
        raise InvalidInputError("a text has no tokens", advice="Send a longer text.")
    if tokens > context_length:
        raise ContextExceededError(
            f"the text has {tokens} tokens, and the context holds {context_length}",
            advice="Send a shorter text.",
        )


def check_number(length: float) -> None:
    """Raise RuntimeFault for a vector with a non-finite length, which JSON could not represent."""
    if not math.isfinite(length):
        raise RuntimeFault(
            f"the model returned a vector of the length {length}",
            advice="Its values probably overflow: deploy another variant.",
        )
