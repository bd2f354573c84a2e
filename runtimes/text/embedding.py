"""What every engine asks of texts that it is to embed and of their vectors; how many at once."""

import math
from collections.abc import Sequence
from typing import Final

from runtimes.errors import ContextExceededError, InvalidInputError, RuntimeFault
from runtimes.text.generation import check_text

MAX_TEXTS: Final = 2048
# Requests at once when nobody says how many: a short one takes turns with those of many texts.
DEFAULT_PARALLEL: Final = 4


def check_texts(texts: Sequence[str]) -> None:
    """InvalidInputError unless there are 1 to ``MAX_TEXTS`` whole texts, none of them empty."""
    if not 1 <= len(texts) <= MAX_TEXTS:
        raise InvalidInputError(
            f"{len(texts)} texts came", advice=f"Send 1 to {MAX_TEXTS} at once."
        )
    for text in texts:
        check_text(text)
        if not text:
            raise InvalidInputError(
                "a text is empty", advice="Send at least one character in each."
            )


def check_length(tokens: int, context_length: int) -> None:
    """InvalidInputError for a text of no tokens, ContextExceededError for one of too many."""
    if not tokens:
        raise InvalidInputError("a text has no tokens", advice="Send more than that.")
    if tokens > context_length:
        raise ContextExceededError(
            f"the text has {tokens} tokens, and the context holds {context_length}",
            advice="Send a shorter text.",
        )


def check_number(length: float) -> None:
    """RuntimeFault for a vector whose length is no number: JSON would have null for its values."""
    if not math.isfinite(length):
        raise RuntimeFault(
            f"the model gives a vector of the length {length}",
            advice="Its values overflow, most likely: deploy another variant.",
        )
