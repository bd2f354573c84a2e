"""What a model predicts, where that is known: a text's next tokens, a classifier's rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Predictions:
    """Rows of logits or scores (float32), a row for each of ``targets`` (int64): what was right.

    They hold until the next ones are asked for: at most some dozen rows are in memory at once.
    ``done`` is the part of the data that is behind them, 0 to 1.
    """

    targets: Any
    rows: Any
    done: float


@runtime_checkable
class PredictsText(Protocol):
    """An engine that shows its predictions, as engines of text do."""

    def predictions(self, text: str) -> Iterator[Predictions]:
        """One for each token of a text but the first; raises InvalidInputError."""
