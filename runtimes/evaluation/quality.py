"""Measure quality: perplexity on a text, accuracy on labelled tensors.

Embeddings have no correct answers: they are only compared with the source's (runtimes.evaluation).
"""

import hashlib
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from artifact.manifest import Quality, Task
from runtimes.base import Engine
from runtimes.errors import BuildError, InvalidInputError, NotANumberError
from runtimes.predictions import Predictions, PredictsText
from runtimes.text.steps import whole

MAX_EVALUATION_BYTES: Final = 64 << 20
LABELS: Final = "labels"
# The name of generated inputs, in the place of a data set's.
GENERATED: Final = "generated"
_BATCH_ROWS: Final = 256
_BATCH_TEXTS: Final = 32
# Above it, math.exp overflows.
_LARGEST_LOG: Final = math.log(sys.float_info.max)
_OVERFLOWS: Final = "Its values probably overflow: use another scheme."


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A file to measure on: UTF-8 text, or an .npz of the inputs by name and ``labels``.

    An embedding model reads each line of the text separately.
    """

    path: Path
    task: Task
    data: bytes

    @property
    def dataset(self) -> str:
        """File name and the first digits of its SHA-256."""
        return _named(self.path, hashlib.sha256(self.data).hexdigest())


def dataset_name(path: Path) -> str:
    """Return the name by which a manifest refers to a data file, such as calibration data."""
    with path.open("rb") as file:
        return _named(path, hashlib.file_digest(file, "sha256").hexdigest())


def _named(path: Path, digest: str) -> str:
    return f"{path.name[:150]} sha256:{digest[:12]}"


def read_evaluation(path: Path, task: Task) -> Evaluation:
    """Read the file; raise BuildError if it is missing, empty or too large."""
    if not path.is_file() or not 0 < path.stat().st_size <= MAX_EVALUATION_BYTES:
        raise BuildError(
            f"the evaluation data {path} are not a file of 1 to {MAX_EVALUATION_BYTES:,} bytes",
            advice="Give a text for a language model, an .npz with labels for a classifier.",
        )
    return Evaluation(path, task, path.read_bytes())


def quality_of(predictions: Iterable[Predictions], evaluation: Evaluation) -> Quality:
    """Compute the quality of a model from its predictions; raise BuildError for embeddings."""
    if evaluation.task is Task.EMBEDDING:
        raise BuildError(
            "an embedding model has no quality by itself",
            advice="Compare variants with their source instead.",
        )
    meter = QualityMeter(evaluation)
    for some in predictions:
        meter.add(some)
    return meter.quality()


def predict(engine: Engine, evaluation: Evaluation) -> Iterator[Predictions]:
    """Yield a loaded model's predictions on the file; raise BuildError if it does not fit."""
    if evaluation.task is Task.TEXT_GENERATION:
        return _predict_text(engine, evaluation)
    if evaluation.task is Task.EMBEDDING:
        return _predict_vectors(engine, evaluation)
    return _predict_rows(engine, evaluation)


class QualityMeter:
    """Running perplexity or accuracy over predictions."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self._is_text = evaluation.task is Task.TEXT_GENERATION
        self._sum = 0.0
        self._count = 0

    def add(self, some: Predictions) -> None:
        """Count the predictions; raise NotANumberError if one is not finite."""
        from runtimes.text.sampling import negative_log_likelihood

        refuse_no_numbers(some)
        self._count += len(some.targets)
        if self._is_text:
            self._sum += negative_log_likelihood(some.rows, some.targets)
        else:
            self._sum += float((classes(some.rows) == some.targets).sum())

    def quality(self) -> Quality:
        """Return the quality of the predictions so far; raise NotANumberError on overflow."""
        mean = self._sum / self._count
        if self._is_text and mean > _LARGEST_LOG:
            raise NotANumberError(
                f"the model's perplexity is exp({mean:.6g}), which overflows",
                advice=_OVERFLOWS,
            )
        return Quality(
            metric="perplexity" if self._is_text else "accuracy",
            value=round(math.exp(mean) if self._is_text else mean, 6),
            higher_is_better=not self._is_text,
            dataset=self._evaluation.dataset,
        )


def refuse_no_numbers(some: Predictions) -> None:
    """Raise NotANumberError for NaN or infinity, which comparisons with goals would let pass."""
    import numpy as np

    # The maximum of a row, because single logits of -inf are legitimate: they rule a token out.
    if not np.isfinite(some.rows.max(axis=-1)).all():
        raise NotANumberError("the model predicts NaN or infinity", advice=_OVERFLOWS)


def classes(rows: Any) -> Any:
    """Return the class of each row of scores; a single column is the class itself."""
    return rows[:, 0] if rows.shape[1] == 1 else rows.argmax(axis=-1)


def _predict_text(engine: Engine, evaluation: Evaluation) -> Iterator[Predictions]:
    import numpy as np

    text = _text_of(evaluation)
    if not isinstance(engine, PredictsText):
        raise BuildError(
            f"{type(engine).__name__} exposes no predictions",
            advice="Build without an evaluation.",
        )
    for some in engine.predictions(text):
        targets = np.asarray(some.targets, dtype=np.int64)
        yield Predictions(targets, np.asarray(some.rows, dtype=np.float32), some.done)


def _predict_vectors(engine: Engine, evaluation: Evaluation) -> Iterator[Predictions]:
    """Yield a vector for each line; its target is the line's number, as none is correct."""
    import numpy as np

    texts = texts_of(evaluation)
    for start in range(0, len(texts), _BATCH_TEXTS):
        some = texts[start : start + _BATCH_TEXTS]
        end = start + len(some)
        try:
            vectors = whole(engine.embed(some)).vectors
        except InvalidInputError as error:
            raise BuildError(
                f"one of the texts {start + 1} to {end} of {evaluation.path} cannot be embedded: "
                f"{error}",
                advice="Write one text per line, each within the model's context.",
            ) from error
        rows = np.frombuffer(b"".join(vectors), "<f4").reshape(len(some), -1)
        yield Predictions(np.arange(start, end), rows, end / len(texts))


def texts_of(evaluation: Evaluation) -> list[str]:
    """Return the lines that are not blank; raise BuildError if there is none."""
    texts = [line for line in _text_of(evaluation).splitlines() if line.strip()]
    if not texts:
        raise BuildError(f"{evaluation.path} has no text", advice="Write one text per line.")
    return texts


def _text_of(evaluation: Evaluation) -> str:
    try:
        return evaluation.data.decode()
    except UnicodeDecodeError as error:
        raise BuildError(
            f"{evaluation.path} is not UTF-8 text",
            advice="Give UTF-8 text to measure a text model.",
        ) from error


def _predict_rows(engine: Engine, evaluation: Evaluation) -> Iterator[Predictions]:
    import numpy as np

    from runtimes.arrays import DTYPES, to_array, to_value

    arrays = _read_arrays(evaluation)
    labels = arrays.pop(LABELS).astype(np.int64).reshape(-1)
    declared = {spec.name: spec for spec in engine.tensors()[0]}
    if set(arrays) != set(declared) or any(len(a) != len(labels) for a in arrays.values()):
        raise BuildError(
            f"{evaluation.path} has {', '.join(sorted(arrays)) or 'no inputs'} for {len(labels)} "
            "labels",
            advice=f"It needs one row per label of {', '.join(sorted(declared))}.",
        )
    # A graph with a fixed batch takes just that; rows that fill no batch are left out.
    fixed = max((spec.shape[0] for spec in declared.values() if spec.shape), default=0)
    step = fixed if fixed > 0 else _BATCH_ROWS
    end = len(labels) - len(labels) % fixed if fixed > 0 else len(labels)
    if end < 1:
        raise BuildError(
            f"{evaluation.path} has {len(labels)} rows; the model takes batches of {fixed}",
            advice="Give more rows.",
        )
    for start in range(0, end, step):
        rows = slice(start, start + step)
        inputs = [
            to_value(name, arrays[name][rows].astype(DTYPES[spec.datatype]))
            for name, spec in declared.items()
        ]
        # The first output has the scores, one row for each input row.
        scores = to_array(engine.infer(inputs)[0]).reshape(len(labels[rows]), -1)
        done = (start + len(labels[rows])) / end
        yield Predictions(labels[rows], scores.astype(np.float32, copy=False), done)


def _read_arrays(evaluation: Evaluation) -> dict[str, Any]:
    from runtimes.arrays import read_arrays

    arrays = read_arrays(evaluation.path, evaluation.data, BuildError)
    if not len(arrays.get(LABELS, ())):
        raise BuildError(
            f"{evaluation.path} has no array {LABELS!r}",
            advice="Write it with numpy.savez: the model's inputs by name, and `labels`.",
        )
    return arrays
