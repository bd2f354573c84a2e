"""Contract of quantizers: complete files, reproducible bytes, or a refusal."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtimes import registry
from runtimes.base import Quantizer, Scheme
from runtimes.errors import QuantizeError
from runtimes.fake import FakeModel, write_model


@dataclass(frozen=True)
class Case:
    """Source, its runtime, and a scheme that makes it smaller."""

    runtime: str
    source: Path
    scheme: str

    @property
    def quantizer(self) -> Quantizer:
        return registry.find(self.runtime).quantizer()

    @property
    def copy(self) -> str:
        return self.quantizer.schemes[0]


@pytest.fixture(params=["fake:half", "llama_cpp:q4_k_m", "onnx:int4"])
def case(request: pytest.FixtureRequest, demo_models: Path, tmp_path: Path) -> Case:
    runtime, _, scheme = request.param.partition(":")
    (tmp_path / "source").mkdir()
    fake = write_model(tmp_path / "source" / "model.fake", FakeModel(padding="x" * 10_000))
    sources = {
        "fake": fake,
        "llama_cpp": demo_models / "base.gguf",
        "onnx": demo_models / "digits.onnx",
    }
    return Case(runtime, sources[runtime], scheme)


def silent(what: str, done: float) -> None:
    pass


@pytest.fixture
def made(tmp_path: Path) -> Callable[[Case, Scheme], Path]:
    """Return a function that makes a variant in a new folder."""

    def make(case: Case, scheme: Scheme) -> Path:
        folder = tmp_path / f"made-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        path = folder / f"model.{registry.find(case.runtime).format}"
        case.quantizer.quantize(case.source, scheme, path, silent)
        assert [each.name for each in folder.iterdir()] == [path.name]
        return path

    return make


def test_a_variant_is_smaller_and_says_how_it_was_made(
    case: Case, made: Callable[[Case, Scheme], Path]
) -> None:
    path = made(case, Scheme(case.scheme))
    assert path.stat().st_size < case.source.stat().st_size
    assert registry.find(case.runtime).inspector().inspect(path).quantization == case.scheme


def test_the_same_again_is_the_same_bytes(case: Case, made: Callable[[Case, Scheme], Path]) -> None:
    first, again = (made(case, Scheme(case.scheme)) for _ in range(2))
    assert first.read_bytes() == again.read_bytes()


def test_a_size_that_is_predicted_is_about_right(
    case: Case, made: Callable[[Case, Scheme], Path]
) -> None:
    for scheme in (case.copy, case.scheme):
        predicted = case.quantizer.predict_size(case.source, Scheme(scheme))
        size = made(case, Scheme(scheme)).stat().st_size
        assert predicted == pytest.approx(size, rel=0.05) or predicted == 0


def test_progress_begins_at_nothing_and_ends_with_all(case: Case, tmp_path: Path) -> None:
    done: list[float] = []
    case.quantizer.quantize(
        case.source, Scheme(case.scheme), tmp_path / "made", lambda _, part: done.append(part)
    )
    assert (done[0], done[-1]) == (0, 1)
    assert done == sorted(done)


def test_what_is_not_known_is_refused_before_anything_is_written(
    case: Case, tmp_path: Path
) -> None:
    folder = tmp_path / "refused"
    folder.mkdir()
    everything = Scheme(
        case.scheme,
        calibration=tmp_path / "gone.txt",
        prune_layers=(99,),
        sparsity=0.5,
        block_size=7,
    )
    for scheme in (Scheme("q99"), everything, Scheme(case.copy, sparsity=1.0)):
        for ask in (
            lambda how: case.quantizer.quantize(case.source, how, folder / "made", silent),
            lambda how: case.quantizer.predict_size(case.source, how),
        ):
            with pytest.raises(QuantizeError) as caught:
                ask(scheme)
            assert caught.value.advice
    assert list(folder.iterdir()) == []


def test_a_failure_leaves_what_was_there(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail at the last step, as a full disk does."""
    there = tmp_path / "made"
    there.write_text("what was there before")

    def fail(descriptor: int) -> None:
        raise OSError(28, f"No space left for {descriptor}")

    monkeypatch.setattr("runtimes.quantizing.os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        case.quantizer.quantize(case.source, Scheme(case.scheme), there, silent)
    assert there.read_text() == "what was there before"
    assert [path.name for path in tmp_path.glob(".*")] == []
