"""What an embedding model's source says of some texts: what a release expects of its variants."""

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
# In characters; a passage says as much of an encoder as a book does.
_LONGEST_TEXT: Final = 1024
# Far finer than what any variant keeps, and half as long to write as all digits.
_DIGITS: Final = 6


class Expected(Struct, frozen=True):
    """The file: what a check of embeddings in release.yaml reads."""

    expected: tuple[Embedding, ...]


def write_expected(path: Path, evaluation: Evaluation, said: Iterable[Predictions]) -> None:
    """The first texts with what was said of them; no file when nothing was, or all are long."""
    expected = tuple(islice(_embeddings(texts_of(evaluation), said), MAX_TEXTS))
    if expected:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(Expected(expected)), indent=0))


def _embeddings(texts: list[str], said: Iterable[Predictions]) -> Iterator[Embedding]:
    for some in said:
        for number, row in zip(some.targets, some.rows, strict=True):
            text = texts[int(number)]
            if len(text) <= _LONGEST_TEXT:
                vector = tuple(round(float(value), _DIGITS) for value in row)
                yield Embedding(text=text, vector=vector)
