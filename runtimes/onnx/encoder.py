"""Layout of text encoders as sentence-transformers and Optimum export them."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

INPUTS: Final = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids"})
# The output with one vector per text.
POOLED: Final = "sentence_embedding"
# Outputs with one vector per token, which the engine pools.
TOKEN_OUTPUTS: Final = ("last_hidden_state", "token_embeddings")


def is_encoder(inputs: Iterable[str], outputs: Iterable[str]) -> bool:
    """Return True if a graph with these inputs and outputs is a text encoder."""
    given = set(inputs)
    return "input_ids" in given <= INPUTS and not {POOLED, *TOKEN_OUTPUTS}.isdisjoint(outputs)


def width_of(outputs: Iterable[tuple[str, Sequence[Any]]]) -> int:
    """Return the width of hidden states from the outputs' names and shapes; 0 if it is free.

    The largest is taken, because a pooled vector may be a narrower projection.
    """
    widths = (shape[-1] for name, shape in outputs if shape and name in {POOLED, *TOKEN_OUTPUTS})
    return max((width for width in widths if isinstance(width, int)), default=0)
