"""Expected vectors of an embedding model: its source's answers, for a release's checks."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from artifact.manifest import Embedding
from runtimes.evaluation.quality import Evaluation, texts_of
from runtimes.predictions import Predictions

MAX_TEXTS: Final = 8
# In characters: a short passage tests an encoder as well as a long one.
_LONGEST_TEXT: Final = 1024
# Finer than the precision of any variant, and half as long to write as all digits.
_DIGITS: Final = 6


class Expected(Struct, frozen=True):
    """Contents of the file that a check of embeddings in release.yaml reads."""

    expected: tuple[Embedding, ...]


def write_expected(path: Path, evaluation: Evaluation, predictions: Iterable[Predictions]) -> None:
    """Write the first texts with their vectors; write no file if there is none short enough."""
    expected = tuple(islice(_embeddings(texts_of(evaluation), predictions), MAX_TEXTS))
    if expected:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(Expected(expected)), indent=0))


def _embeddings(texts: list[str], predictions: Iterable[Predictions]) -> Iterator[Embedding]:
    for some in predictions:
        for number, row in zip(some.targets, some.rows, strict=True):
            text = texts[int(number)]
            # The target of an embedding is the number of its line.
            if len(text) <= _LONGEST_TEXT:
                vector = tuple(round(float(value), _DIGITS) for value in row)
                yield Embedding(text=text, vector=vector)
