"""Run a loaded model on a few inputs and yield its outputs, in the evaluating process.

A trial proves that a variant runs and gives the outputs by which it is compared with its source. It
needs no evaluation data: without any, inputs are generated.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from artifact.manifest import Task
from runtimes.arrays import DTYPES, read_arrays, to_array, to_value
from runtimes.base import Engine, TensorSpec
from runtimes.errors import BuildError, InvalidInputError
from runtimes.evaluation.frames import Shapes
from runtimes.evaluation.quality import GENERATED, Evaluation, predict
from runtimes.evaluation.trial_inputs import Arrays, candidate_inputs, inputs_of
from runtimes.predictions import Predictions
from runtimes.text.chat_proof import prove_chat
from runtimes.text.steps import whole

_TEXT: Final = (
    "The box by the road has served its neighbours for many years, and in winter, when the roads "
    "are closed, it is the only one that answers: 12 questions a day, or 13."
)
TEXTS: Final = (_TEXT, "Grüß Gott! Ça va? 你好。")
# One row of evaluation data where the batch is free: the sizes of a trial become those of a
# device's benchmark, which times single requests.
_ROWS: Final = 1
_SEARCH_SECONDS: Final = 60.0


@dataclass(slots=True)
class Trial:
    """Outcome of a trial, complete once ``outputs`` is exhausted.

    ``shapes`` are the sizes of all inputs of a tensor model. ``unmeasured`` is the reason if no
    inputs were found that the model accepts, which is not the model's fault.
    """

    shapes: Shapes = field(default_factory=dict)
    unmeasured: str = ""

    def outputs(
        self, engine: Engine, task: Task, evaluation: Evaluation | None, shapes: Shapes
    ) -> Iterator[Predictions]:
        """Yield the model's outputs as rows; ``shapes`` are those of the source's trial."""
        match task:
            case Task.TEXT_GENERATION:
                prove_chat(engine.render_chat)
                yield from predict(engine, Evaluation(Path(GENERATED), task, TEXTS[0].encode()))
            case Task.EMBEDDING:
                vectors = whole(engine.embed(TEXTS)).vectors
                rows = np.frombuffer(b"".join(vectors), "<f4").reshape(len(TEXTS), -1)
                yield Predictions(np.arange(len(TEXTS)), rows, 1.0)
            case Task.CLASSIFICATION | Task.TENSOR:
                yield from self._tensors(engine, evaluation, shapes)

    def _tensors(
        self, engine: Engine, evaluation: Evaluation | None, shapes: Shapes
    ) -> Iterator[Predictions]:
        specs = engine.tensors()[0]
        deadline = time.monotonic() + _SEARCH_SECONDS
        refusal = ""
        for inputs in _inputs(specs, evaluation, shapes):
            values = [to_value(name, array) for name, array in inputs.items()]
            try:
                outputs = engine.infer(values)
            except InvalidInputError as error:
                # Our guess of the sizes was wrong; that is not the model's fault.
                refusal = str(error)
                if time.monotonic() > deadline:
                    break
                continue
            self.shapes = {name: tuple(array.shape) for name, array in inputs.items()}
            for number, output in enumerate(outputs):
                row = to_array(output).astype(np.float32, copy=False).reshape(1, -1)
                # An empty output is compared by its shape only; a frame cannot be empty.
                if row.size:
                    yield Predictions(np.array([number]), row, (number + 1) / len(outputs))
            return
        self.unmeasured = f"no generated input was accepted; the last refusal: {refusal}"


def _inputs(
    specs: Sequence[TensorSpec], evaluation: Evaluation | None, shapes: Shapes
) -> Iterator[Arrays]:
    """Yield inputs from the evaluation data, else of the source's shapes, else guesses."""
    if evaluation is not None:
        arrays = read_arrays(evaluation.path, evaluation.data, BuildError)
        if set(arrays) >= {spec.name for spec in specs}:
            yield {spec.name: _rows(spec, arrays[spec.name]) for spec in specs}
            return
    known = set(shapes) == {spec.name for spec in specs}
    if known and all(_fits(shapes[spec.name], spec.shape) for spec in specs):
        for limit in (9, 1, 0):
            yield inputs_of(specs, shapes, limit)
        return
    yield from candidate_inputs(specs)


def _rows(spec: TensorSpec, array: Any) -> Any:
    count = spec.shape[0] if spec.shape and spec.shape[0] > 0 else _ROWS
    return array[:count].astype(DTYPES[spec.datatype])


def _fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    return len(shape) == len(declared) and all(
        size in {n, -1} or n in {-1, size} for n, size in zip(shape, declared, strict=True)
    )
