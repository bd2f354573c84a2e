"""Fixtures with one engine of each runtime: the contract tests run on all of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from artifact.manifest import Task
from runtimes import registry
from runtimes.base import Engine, LoadSpec
from runtimes.fake import FakeModel, write_model

CONTEXT = 128


def load(runtime: str, task: Task, folder: Path, context_length: int = CONTEXT) -> Engine:
    """Return every file of a folder by name, like those of an installed variant."""
    files = {path.name: path for path in sorted(folder.iterdir())}
    return registry.find(runtime).load(LoadSpec(files, task, context_length, threads=1))


@pytest.fixture(scope="session")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fakes")
    for name, task in (
        ("text", Task.TEXT_GENERATION),
        ("tensor", Task.TENSOR),
        ("encoder", Task.EMBEDDING),
    ):
        (folder / name).mkdir()
        write_model(folder / name / "model.fake", FakeModel(task=task, parallel=3))
    return folder


@pytest.fixture(
    scope="module",
    params=["fake", "llama_cpp:gguf-f16", "llama_cpp:gguf-q4", "onnx:onnx-fp32", "onnx:onnx-int4"],
)
def text_engine(
    request: pytest.FixtureRequest, built_models: Path, fakes: Path
) -> Iterator[Engine]:
    runtime, _, variant = request.param.partition(":")
    folder = built_models / "base" / variant if variant else fakes / "text"
    engine = load(runtime, Task.TEXT_GENERATION, folder)
    yield engine
    engine.close()


@pytest.fixture(scope="module", params=["fake", "onnx:fp32", "onnx:int8"])
def tensor_engine(
    request: pytest.FixtureRequest, built_models: Path, fakes: Path
) -> Iterator[Engine]:
    runtime, _, variant = request.param.partition(":")
    folder = built_models / "digits" / variant if variant else fakes / "tensor"
    engine = load(runtime, Task.CLASSIFICATION if variant else Task.TENSOR, folder)
    yield engine
    engine.close()


@pytest.fixture(scope="module", params=["fake", "llama_cpp", "onnx"])
def encoder(
    request: pytest.FixtureRequest,
    demo_models: Path,
    fakes: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Engine]:
    folders = {"fake": fakes / "encoder", "onnx": demo_models / "embed-onnx"}
    folder = folders.get(request.param) or tmp_path_factory.mktemp("encoder")
    if request.param == "llama_cpp":
        (folder / "model.gguf").symlink_to(demo_models / "embed.gguf")
    engine = load(request.param, Task.EMBEDDING, folder)
    yield engine
    engine.close()
