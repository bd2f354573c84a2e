"""Contract of loading and closing engines."""

from pathlib import Path

import pytest

from artifact.manifest import Task
from runtimes import registry
from runtimes.base import LoadSpec, Sampling
from runtimes.errors import InvalidInputError, LoadError, RuntimeFault, UnsafeFileError

MODELS = {
    "fake": ("text", "model.fake"),
    "llama_cpp": ("base/gguf-q4", "model.gguf"),
    "onnx": ("base/onnx-fp32", "model.onnx"),
}


@pytest.fixture(params=MODELS)
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def files(runtime: str, built_models: Path, fakes: Path) -> dict[str, Path]:
    folder = (fakes if runtime == "fake" else built_models) / MODELS[runtime][0]
    return {path.name: path for path in folder.iterdir()}


def test_a_closed_engine_stays_closed(runtime: str, files: dict[str, Path]) -> None:
    engine = registry.find(runtime).load(LoadSpec(files, Task.TEXT_GENERATION, 64, threads=1))
    generation = engine.generate("Hello", Sampling(max_tokens=8))
    next(generation)
    engine.close()
    engine.close()
    assert list(generation) == []
    with pytest.raises(RuntimeFault):
        engine.generate("Hello", Sampling())


def test_files_of_any_name_in_any_folder_load(
    runtime: str, files: dict[str, Path], tmp_path: Path
) -> None:
    """Load from paths named by digest, as devices store them, with names from the manifest."""
    stored = {}
    for position, (name, path) in enumerate(files.items()):
        stored[name] = tmp_path / f"{position:064x}"
        stored[name].symlink_to(path)
    engine = registry.find(runtime).load(LoadSpec(stored, Task.TEXT_GENERATION, 64, threads=1))
    assert list(engine.generate("Hello", Sampling(max_tokens=2)))
    engine.close()


def test_a_context_is_the_models_own_and_never_more(runtime: str, files: dict[str, Path]) -> None:
    """Refuse a longer context, which would take gigabytes and generate nonsense."""
    with pytest.raises(LoadError, match="1073741824 tokens is more than the 512"):
        registry.find(runtime).load(LoadSpec(files, Task.TEXT_GENERATION, 1 << 30, threads=1))
    engine = registry.find(runtime).load(LoadSpec(files, Task.TEXT_GENERATION, threads=1))
    with pytest.raises(InvalidInputError, match="context holds 512"):
        engine.generate("word " * 2000, Sampling())
    engine.close()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(100), b"\x80\x04" + bytes(100)])
def test_a_file_that_is_not_what_its_name_says_is_refused(
    runtime: str, files: dict[str, Path], tmp_path: Path, content: bytes
) -> None:
    _, main = MODELS[runtime]
    bad = tmp_path / main
    bad.write_bytes(content)
    spec = LoadSpec(files | {main: bad}, Task.TEXT_GENERATION, 64, threads=1)
    with pytest.raises(UnsafeFileError) as caught:
        registry.find(runtime).load(spec)
    assert caught.value.advice


def test_a_file_cut_off_is_refused(runtime: str, files: dict[str, Path], tmp_path: Path) -> None:
    _, main = MODELS[runtime]
    whole = files[main].read_bytes()
    bad = tmp_path / main
    bad.write_bytes(whole[: len(whole) * 3 // 4])
    spec = LoadSpec(files | {main: bad}, Task.TEXT_GENERATION, 64, threads=1)
    with pytest.raises(UnsafeFileError):
        registry.find(runtime).load(spec)
