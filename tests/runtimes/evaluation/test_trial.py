"""Trials: inputs for free dimensions, and the comparison of a variant's outputs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from artifact.manifest import Task
from runtimes.arrays import to_value
from runtimes.base import TensorSpec, TensorValue
from runtimes.errors import BuildError, InvalidInputError, VariantFailedError
from runtimes.evaluation.frames import EvaluationJob
from runtimes.evaluation.process import evaluating
from runtimes.evaluation.trial import Trial
from runtimes.evaluation.trial_inputs import MAX_VALUES, candidate_shapes
from runtimes.evaluation.trials import compare_outputs
from runtimes.predictions import Predictions


class Picky:
    """A tensor engine that accepts one combination of sizes."""

    def __init__(self, specs: Sequence[TensorSpec], accepted: dict[str, tuple[int, ...]]) -> None:
        self._specs = tuple(specs)
        self._accepted = accepted
        self.calls = 0

    def tensors(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        return self._specs, ()

    def infer(self, inputs: Sequence[TensorValue]) -> list[TensorValue]:
        self.calls += 1
        if {value.name: value.shape for value in inputs} != self._accepted:
            raise InvalidInputError("these sizes do not work")
        return [to_value("y", np.array([1.0, 2.0], np.float32))]


SILERO = (
    TensorSpec("input", "FP32", (-1, -1)),
    TensorSpec("state", "FP32", (2, -1, 128)),
    TensorSpec("sr", "INT64", ()),
)
IMAGE = (TensorSpec("images", "FP32", (-1, 3, -1, -1)),)
TOKENS = (TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("mask", "INT64", (-1, -1)))


@pytest.mark.parametrize(
    ("specs", "accepted"),
    [
        (SILERO, {"input": (1, 512), "state": (2, 1, 128), "sr": ()}),
        (IMAGE, {"images": (1, 3, 640, 640)}),
        (TOKENS, {"ids": (1, 16), "mask": (1, 16)}),
        (TOKENS, {"ids": (1, 1), "mask": (1, 576)}),
        ((TensorSpec("x", "BOOL", (2, 3)),), {"x": (2, 3)}),
    ],
)
def test_sizes_that_a_model_accepts_are_found(
    specs: Sequence[TensorSpec], accepted: dict[str, tuple[int, ...]]
) -> None:
    engine, trial = Picky(specs, accepted), Trial()
    (row,) = trial.outputs(engine, Task.TENSOR, None, {})  # type: ignore[arg-type]
    assert row.rows.tolist() == [[1, 2]]
    assert (trial.shapes, trial.unmeasured) == (accepted, "")
    assert engine.calls < 1000
    # The variant runs with the sizes of its source at once.
    again = Picky(specs, accepted)
    assert list(Trial().outputs(again, Task.TENSOR, None, accepted))  # type: ignore[arg-type]
    assert again.calls == 1


def test_without_any_size_that_works_a_trial_is_unmeasured() -> None:
    engine, trial = Picky(IMAGE, {}), Trial()
    assert list(trial.outputs(engine, Task.TENSOR, None, {})) == []  # type: ignore[arg-type]
    assert "these sizes do not work" in trial.unmeasured
    assert trial.shapes == {}


def test_no_guess_is_larger_than_a_device_may_send() -> None:
    huge = (TensorSpec("x", "FP32", (-1, -1, -1, -1, -1, -1)),)
    assert all(np.prod(shapes["x"]) <= MAX_VALUES for shapes in candidate_shapes(huge))


def rows(*values: float) -> list[Predictions]:
    return [Predictions(np.array([0]), np.array([values], np.float32), 1.0)]


def test_the_relative_error_counts_values_that_are_finite_in_the_source() -> None:
    trial = compare_outputs(rows(3, 4, -np.inf), rows(3, 4.5, 0), "generated")
    assert (trial.values, trial.relative_error) == (2, 0.1)
    assert compare_outputs(rows(0, 0), rows(0, 0), "generated").relative_error == 0


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (rows(1, np.nan), "1 of 2 values"),
        (rows(np.inf, 2), "1 of 2 values"),
        (rows(1, 2, 3), "has the shape"),
        ([], "has the shape"),
        (rows(1, 2) * 2, "has the shape"),
    ],
)
def test_outputs_that_do_not_match_are_refused(found: list[Predictions], reason: str) -> None:
    with pytest.raises(VariantFailedError, match=reason) as caught:
        compare_outputs(rows(1, 2), found, "generated")
    assert caught.value.advice


def test_an_evaluating_process_is_confined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a runtime that reads a file outside the model and opens one for writing."""
    plugin, folder = tmp_path / "plugin", tmp_path / "models"
    (plugin / "escape-1.dist-info").mkdir(parents=True)
    (plugin / "escape.py").write_text(ESCAPE)
    (plugin / "escape-1.dist-info" / "METADATA").write_text("Name: escape\nVersion: 1\n")
    (plugin / "escape-1.dist-info" / "entry_points.txt").write_text(
        "[flotilla.runtimes]\nescape = escape:RUNTIME\n"
    )
    folder.mkdir()
    model = folder / "model.bin"
    for file in (model, folder / "secret"):
        file.write_bytes(b"content")
    monkeypatch.setenv("PYTHONPATH", str(plugin))
    monkeypatch.setenv("ESCAPE_SECRET", str(folder / "secret"))
    job = EvaluationJob("escape", {"model.bin": str(model)}, Task.TENSOR, 0, trial=True)
    with (
        pytest.raises(BuildError, match="denied reading, denied writing"),
        evaluating(job, "the source") as live,
    ):
        list(live)


ESCAPE = """
import os
from pathlib import Path
from runtimes.errors import LoadError

class Runtime:
    name = "escape"
    def prepare(self):
        pass
    def load(self, spec):
        done = []
        for word, flags in (("reading", os.O_RDONLY), ("writing", os.O_RDWR | os.O_CREAT)):
            try:
                os.open(os.environ["ESCAPE_SECRET"], flags)
                done.append(f"allowed {word}")
            except OSError:
                done.append(f"denied {word}")
        raise LoadError(", ".join(done))

RUNTIME = Runtime()
"""
