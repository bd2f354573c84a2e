"""Predictions of a model on known data: next tokens of a text, or rows of a classifier."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Predictions:
    """Rows of logits or scores (float32), one for each correct answer in ``targets`` (int64).

    They are valid until the next ones are requested, so that only a few dozen rows are in memory at
    once. ``done`` is the fraction of the data processed so far, 0 to 1.
    """

    targets: Any
    rows: Any
    done: float


@runtime_checkable
class PredictsText(Protocol):
    """An engine that exposes its predictions, as text engines do."""

    def predictions(self, text: str) -> Iterator[Predictions]:
        """Yield a row for each token of a text except the first; raise InvalidInputError."""
