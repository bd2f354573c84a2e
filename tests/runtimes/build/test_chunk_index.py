"""Chunk indexes: versions share the chunks of equal tensors, in every format."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from artifact.chunks import ChunkIndex, encode_index
from artifact.deltas.encode import Side, Tensor, make_delta
from artifact.deltas.restore import restore
from artifact.manifest import ModelVersion
from artifact.splitting import Span
from runtimes import registry
from runtimes.build.chunk_index import index_files

MAIN_FILES = {"gguf": "llama_cpp", "onnx": "onnx"}


def tensors_of(path: Path) -> dict[str, tuple[Span, bytes]]:
    runtime = registry.find(MAIN_FILES[path.suffix[1:]])
    data = path.read_bytes()
    return {
        tensor.name: (
            Span(tensor.offset, tensor.size),
            data[tensor.offset : tensor.offset + tensor.size],
        )
        for tensor in runtime.inspector().inspect(path).tensors
    }


def index_of(path: Path) -> ChunkIndex:
    runtime = registry.find(MAIN_FILES[path.suffix[1:]])
    return index_files(runtime, {path.name: path})[path.name]


@pytest.mark.parametrize(
    "file",
    ["gguf-f16/model.gguf", "gguf-q8/model.gguf", "gguf-q4/model.gguf", "onnx-fp32/model.onnx"],
)
def test_a_fine_tune_of_the_last_layer_costs_the_tensors_of_that_layer(
    built_models: Path, file: str
) -> None:
    base, tuned = (built_models / name / file for name in ("base", "finetune"))
    before, after = tensors_of(base), tensors_of(tuned)
    changed = [name for name, (_, data) in after.items() if before[name][1] != data]
    assert 0 < len(changed) < len(after) / 2
    changed_bytes = sum(after[name][0].size for name in changed)
    outside = tuned.stat().st_size - sum(span.size for span, _ in after.values())
    known = set(index_of(base).chunks)
    new_bytes = sum(chunk.size for chunk in index_of(tuned).chunks if chunk not in known)
    assert new_bytes <= changed_bytes + outside
    assert new_bytes < 0.6 * tuned.stat().st_size


def test_what_was_built_is_cut_as_publishing_cuts_it(built_models: Path) -> None:
    model = msgspec.json.decode(
        (built_models / "base" / "model.json").read_bytes(), type=ModelVersion
    )
    for variant in model.variants:
        folder = built_models / "base" / variant.name
        indexes = index_files(
            registry.find(variant.runtime),
            {file.name: folder / file.name for file in variant.files},
        )
        for file in variant.files:
            assert hashlib.sha256(encode_index(indexes[file.name])).hexdigest() == file.index


def external_model(folder: Path, weights: dict[str, np.ndarray]) -> dict[str, Path]:
    """Return an ONNX model with external weights."""
    folder.mkdir()
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Identity", [next(iter(weights))], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save_model(
        model,
        str(folder / "model.onnx"),
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=0,
    )
    return {path.name: path for path in folder.iterdir()}


def test_weights_beside_an_onnx_file_are_cut_at_their_tensors(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    weights = {name: random.random(30_000, np.float32) for name in "abc"}
    runtime = registry.find("onnx")
    base = index_files(runtime, external_model(tmp_path / "base", weights))["model.onnx_data"]
    weights["b"] = random.random(30_000, np.float32)
    tuned = index_files(runtime, external_model(tmp_path / "tuned", weights))["model.onnx_data"]
    new = [chunk.size for chunk in tuned.chunks if chunk not in base.chunks]
    assert 120_000 <= sum(new) < 120_000 + (4 << 10)


@pytest.mark.parametrize(
    "file",
    [
        "gguf-f16/model.gguf",
        "gguf-q8/model.gguf",
        "gguf-q4/model.gguf",
        "onnx-fp32/model.onnx",
        "onnx-int8/model.onnx",
        "onnx-int4/model.onnx",
    ],
)
@pytest.mark.parametrize("direction", [("base", "finetune"), ("finetune", "base")])
def test_real_files_come_back_exactly_from_their_deltas(
    built_models: Path, tmp_path: Path, file: str, direction: tuple[str, str]
) -> None:
    sides = []
    for name in direction:
        path = built_models / name / file
        runtime = registry.find(MAIN_FILES[path.suffix[1:]])
        tensors = [
            Tensor(each.name, each.type, each.shape, Span(each.offset, each.size))
            for each in runtime.inspector().inspect(path).tensors
        ]
        sides.append(Side(path, hashlib.sha256(path.read_bytes()).digest(), tensors))
    base, target = sides
    size = make_delta(base, target, tmp_path / "delta")
    restore(base.path, tmp_path / "delta", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == target.path.read_bytes()
    assert size < 0.6 * target.path.stat().st_size
