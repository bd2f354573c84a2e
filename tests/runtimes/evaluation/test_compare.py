"""Comparing a variant with its source, each in its own process: quality and memory."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest

from artifact.manifest import Quality, Task
from runtimes import registry
from runtimes.base import LoadSpec
from runtimes.errors import BuildError, NotANumberError, VariantFailedError
from runtimes.evaluation.compare import compare, compare_predictions
from runtimes.evaluation.comparison import Comparison
from runtimes.evaluation.frames import EvaluationJob
from runtimes.evaluation.process import evaluating
from runtimes.evaluation.quality import predict, quality_of, read_evaluation
from runtimes.evaluation.tape import Tape
from runtimes.fake import FakeModel, Faults, write_model
from runtimes.predictions import Predictions

HELDOUT = Path(__file__).parents[3] / "scripts" / "demo_models" / "heldout.txt"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(HELDOUT.read_text(encoding="utf-8")[:2000], encoding="utf-8")
    return path


def job(folder: Path, evaluation: Path, task: Task = Task.TEXT_GENERATION) -> EvaluationJob:
    files = {path.name: str(path) for path in folder.iterdir()}
    (ending,) = {name.rpartition(".")[2] for name in files} & {"gguf", "onnx", "fake"}
    return EvaluationJob(registry.find_by_format(ending).name, files, task, 512, str(evaluation))


def fake(folder: Path, **fields: Any) -> Path:
    folder.mkdir()
    write_model(folder / "model.fake", FakeModel(**fields))
    return folder


def compared(source: EvaluationJob, variant: EvaluationJob) -> Comparison:
    evaluation = read_evaluation(Path(source.evaluation), source.task)
    with tempfile.TemporaryDirectory() as folder:
        tape = Tape(Path(folder) / "tape")
        return compare(source, variant, evaluation, lambda *_: None, tape)


@pytest.mark.parametrize(
    ("source", "variant"), [("gguf-f16", "gguf-q4"), ("onnx-fp32", "onnx-int4")]
)
def test_a_language_model_loses_a_little(
    source: str, variant: str, built_models: Path, text: Path
) -> None:
    left, right = (job(built_models / "base" / name, text) for name in (source, variant))
    found = compared(left, right)
    assert found.divergence is not None
    assert found.divergence.mean_kl is not None
    assert 0.001 < found.divergence.mean_kl < 0.1
    assert 0.8 < found.divergence.same_top < 0.99
    assert found.divergence.predictions > 500
    assert found.divergence.dataset == found.quality.dataset
    # The same figures as in one process.
    evaluation = read_evaluation(text, Task.TEXT_GENERATION)
    for one, quality in ((left, found.source_quality), (right, found.quality)):
        files = {name: Path(path) for name, path in one.files.items()}
        spec = LoadSpec(files, Task.TEXT_GENERATION, 512, threads=1)
        engine = registry.find(one.runtime).load(spec)
        assert quality_of(predict(engine, evaluation), evaluation).value == pytest.approx(
            quality.value, rel=1e-4
        )
        engine.close()


def test_a_classifier_agrees_with_its_source_and_with_the_labels(
    built_models: Path, demo_models: Path
) -> None:
    images = demo_models / "digits-eval.npz"
    fp32, int8 = (
        job(built_models / "digits" / name, images, Task.CLASSIFICATION)
        for name in ("fp32", "int8")
    )
    found = compared(fp32, int8)
    assert found.divergence is not None
    assert found.divergence.predictions == 360
    assert found.divergence.same_top > 0.95
    assert found.divergence.mean_kl is not None
    assert 0 < found.divergence.mean_kl < 0.05
    assert (found.quality.metric, found.source_quality.metric) == ("accuracy", "accuracy")


def test_a_model_beside_itself_is_the_same(tmp_path: Path, text: Path) -> None:
    source = job(fake(tmp_path / "source", perplexity=8.0), text)
    found = compared(source, source)
    assert found.divergence is not None
    assert found.divergence.mean_kl == 0
    assert found.divergence.same_top == 1
    assert found.quality == found.source_quality


def test_divergence_is_kullback_and_leiblers(tmp_path: Path, text: Path) -> None:
    """Compute the divergence from the fake's rows: one value for the right byte, one for others."""
    source, variant = (
        job(fake(tmp_path / str(perplexity), perplexity=perplexity), text)
        for perplexity in (8.0, 16.0)
    )
    p, q = 1 / 8, 1 / 16
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    found = compared(source, variant)
    assert found.divergence is not None
    assert found.divergence.mean_kl == pytest.approx(expected, rel=1e-4)
    assert (found.source_quality.value, found.quality.value) == pytest.approx((8, 16), rel=1e-4)


@pytest.mark.parametrize(("limit", "runs"), [(1 << 30, 1), (1000, 2)])
def test_a_source_is_evaluated_once_while_its_tape_holds_it(
    limit: int, runs: int, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = job(fake(tmp_path / "source", perplexity=8.0), text)
    variant = job(fake(tmp_path / "variant", perplexity=9.0), text)
    started: list[str] = []

    def counting(one: EvaluationJob, what: str) -> Any:
        started.append(what)
        return evaluating(one, what)

    monkeypatch.setattr("runtimes.evaluation.compare.evaluating", counting)
    evaluation = read_evaluation(text, Task.TEXT_GENERATION)
    tape = Tape(tmp_path / "tape", limit)
    first, second = (compare(source, variant, evaluation, lambda *_: None, tape) for _ in range(2))
    assert started.count("the source") == runs
    assert (first.divergence, first.source_quality) == (second.divergence, second.source_quality)
    # A tape never exceeds its limit, and is deleted if the limit is too small.
    assert (tmp_path / "tape").exists() is (runs == 1)


def test_memory_is_the_variants_own(tmp_path: Path, text: Path) -> None:
    source = job(fake(tmp_path / "source", allocate_bytes=64 << 20), text)
    variant = job(fake(tmp_path / "variant", allocate_bytes=16 << 20), text)
    assert 16 << 20 <= compared(source, variant).memory_bytes < 32 << 20


@pytest.mark.parametrize(
    ("fault", "reason"), [("error", "staged failure on load"), ("crash", "exited with code 139")]
)
def test_a_model_that_cannot_be_evaluated_is_named_and_leaves_no_process(
    fault: Any, reason: str, tmp_path: Path, text: Path
) -> None:
    before = set(psutil.Process().children())
    sound = job(fake(tmp_path / "sound"), text)
    broken = job(fake(tmp_path / "broken", faults=Faults(on_load=fault)), text)
    # A process left running would outlive its caller.
    hanging = job(fake(tmp_path / "hanging", faults=Faults(on_load="hang")), text)
    for left, right, which in ((sound, broken, "the variant"), (broken, hanging, "the source")):
        with pytest.raises(BuildError, match=which) as caught:
            compared(left, right)
        assert reason in str(caught.value)
    assert set(psutil.Process().children()) == before


def test_models_that_read_otherwise_are_not_compared(
    built_models: Path, tmp_path: Path, text: Path
) -> None:
    with pytest.raises(BuildError, match="different tokens or rows"):
        compared(job(fake(tmp_path / "fake"), text), job(built_models / "base" / "gguf-q8", text))


def test_data_that_do_not_fit_the_model_are_refused(built_models: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    np.savez(other, pixels=np.zeros((2, 64), np.float32), labels=np.zeros(2))
    digits = job(built_models / "digits" / "fp32", other, Task.CLASSIFICATION)
    with pytest.raises(BuildError, match="pixels"):
        compared(digits, digits)


def vectors(*angles: float) -> Predictions:
    """Return unit vectors at these angles to the first axis."""
    rows = np.array([[math.cos(each), math.sin(each)] for each in angles], np.float32)
    return Predictions(np.arange(len(angles)), rows, 1.0)


def test_an_embedding_model_is_as_good_as_its_vectors_are_near_to_its_sources(text: Path) -> None:
    evaluation = read_evaluation(text, Task.EMBEDDING)
    source, variant = vectors(0, 1), vectors(math.pi / 3, 1)
    found = compare_predictions([source], [variant], evaluation, lambda *_: None)
    expected = Quality(
        metric="cosine_similarity", value=0.75, higher_is_better=True, dataset=evaluation.dataset
    )
    assert found.quality == expected
    assert (found.source_quality.value, found.divergence) == (1, None)
    broken = vectors(0, math.nan)
    with pytest.raises(VariantFailedError, match="NaN or infinity"):
        compare_predictions([source], [broken], evaluation, lambda *_: None)


@pytest.mark.parametrize("data", [b"\n \n", b"word " * 1000, b"\xff"])
def test_texts_that_cannot_be_embedded_are_refused(
    data: bytes, demo_models: Path, tmp_path: Path
) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(data)
    evaluation = read_evaluation(path, Task.EMBEDDING)
    files = {file.name: file for file in (demo_models / "embed-onnx").iterdir()}
    engine = registry.find("onnx").load(LoadSpec(files, Task.EMBEDDING, threads=1))
    with pytest.raises(BuildError, match=r"texts\.txt") as caught:
        list(predict(engine, evaluation))
    assert caught.value.advice
    with pytest.raises(BuildError, match="no quality by itself"):
        quality_of(predict(engine, evaluation), evaluation)
    engine.close()


# The first class is the right one.
SOUND = Predictions(np.array([0]), np.eye(1, 2, dtype=np.float32), 1.0)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([np.nan, 0], "NaN or infinity"),
        ([np.inf, 0], "NaN or infinity"),
        ([-np.inf, -np.inf], "NaN or infinity"),
        # The right class has probability 0, or nearly 0.
        ([-np.inf, 0], r"exp\(inf\)"),
        ([0, 1000], r"exp\(1000\)"),
    ],
)
def test_a_variant_whose_predictions_give_no_figure_meets_no_goal(
    row: list[float], reason: str, text: Path
) -> None:
    evaluation = read_evaluation(text, Task.TEXT_GENERATION)
    broken = Predictions(SOUND.targets, np.array([row], np.float32), 1.0)
    for left, right, error in (
        (SOUND, broken, VariantFailedError),
        (broken, SOUND, NotANumberError),
    ):
        with pytest.raises(error, match=reason) as caught:
            compare_predictions([left], [right], evaluation, lambda *_: None)
        assert caught.value.advice


def test_a_token_that_both_rule_out_hides_no_difference(text: Path) -> None:
    evaluation = read_evaluation(text, Task.TEXT_GENERATION)
    source, variant = (
        Predictions(np.array([0]), np.array([[sure, 0, -np.inf]], np.float32), 1.0)
        for sure in (1, 2)
    )
    found = compare_predictions([source], [variant], evaluation, lambda *_: None)
    assert found.divergence is not None
    p, q = (1 / (1 + math.exp(-sure)) for sure in (1, 2))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert found.divergence.mean_kl == pytest.approx(expected)


@pytest.mark.parametrize(("of_source", "of_variant"), [(1, 2), (2, 1)])
def test_predictions_that_one_has_more_of_are_not_compared(
    of_source: int, of_variant: int, text: Path
) -> None:
    evaluation = read_evaluation(text, Task.TEXT_GENERATION)
    with pytest.raises(BuildError, match="different tokens or rows") as caught:
        compare_predictions([SOUND] * of_source, [SOUND] * of_variant, evaluation, lambda *_: None)
    assert caught.value.advice


def test_a_graph_with_a_fixed_batch_is_measured(demo_models: Path, tmp_path: Path) -> None:
    model = onnx.load(demo_models / "digits.onnx")
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, tmp_path / "model.onnx")
    arrays = np.load(demo_models / "digits-eval.npz")
    np.savez(tmp_path / "eval.npz", **{name: arrays[name][:100] for name in arrays.files})
    evaluation = read_evaluation(tmp_path / "eval.npz", Task.CLASSIFICATION)
    spec = LoadSpec({"model.onnx": tmp_path / "model.onnx"}, Task.CLASSIFICATION, threads=1)
    engine = registry.find("onnx").load(spec)
    found = list(predict(engine, evaluation))
    engine.close()
    assert [len(some.targets) for some in found] == [3] * 33
    assert quality_of(found, evaluation).value > 0.9
