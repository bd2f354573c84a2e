"""The layout of encoders that turn texts into embeddings, as sentence-transformers export them."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

INPUTS: Final = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids"})
# One vector per text; and one per token, to be pooled.
POOLED: Final = "sentence_embedding"
TOKEN_OUTPUTS: Final = ("last_hidden_state", "token_embeddings")


def is_encoder(inputs: Iterable[str], outputs: Iterable[str]) -> bool:
    """Whether a graph with inputs and outputs of these names is one."""
    given = set(inputs)
    return "input_ids" in given <= INPUTS and not {POOLED, *TOKEN_OUTPUTS}.isdisjoint(outputs)


def width_of(outputs: Iterable[tuple[str, Sequence[Any]]]) -> int:
    """How wide hidden states are, by names and shapes of outputs; 0 where the graph leaves it open.

    A pooled vector may be a narrower projection of them, or of no width that is told.
    """
    widths = (shape[-1] for name, shape in outputs if shape and name in {POOLED, *TOKEN_OUTPUTS})
    return max((width for width in widths if isinstance(width, int)), default=0)
