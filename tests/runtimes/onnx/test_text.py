"""Text generation specific to ONNX Runtime; tests/contract covers the rest."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from demo_models.onnx_export import write_folder
from demo_models.weights import Shape
from onnx import TensorProto, helper, numpy_helper

from artifact.manifest import Task
from runtimes import registry
from runtimes.base import Engine, LoadSpec, Sampling
from runtimes.build.source import open_source
from runtimes.errors import ModelFaultError
from runtimes.onnx.memory import BATCH_TOKENS

LONG_PROMPT = "The import statement combines two operations; it searches for the named module. " * 4


@pytest.fixture(scope="module")
def engine(demo_models: Path) -> Iterator[Engine]:
    files = {path.name: path for path in (demo_models / "base-onnx").iterdir()}
    engine = registry.find("onnx").load(LoadSpec(files, Task.TEXT_GENERATION, threads=1))
    yield engine
    engine.close()


def test_a_long_prompt_is_read_in_steps_and_may_be_given_up(engine: Engine) -> None:
    given_up = engine.generate(LONG_PROMPT, Sampling(max_tokens=4))
    assert given_up.poll() is None
    given_up.close()
    generation = engine.generate(LONG_PROMPT, Sampling(max_tokens=4))
    steps = 1
    while generation.poll() is None:
        steps += 1
    usage = generation.usage
    assert steps == -(-usage.prompt_tokens // BATCH_TOKENS) > 1
    assert usage.generated_tokens == 1
    assert usage.prefill_seconds > 0
    assert len(list(engine.generate(LONG_PROMPT, Sampling(max_tokens=4)))) == 4


def test_a_tokenizer_of_another_model_is_refused_and_the_engine_stays_usable(
    tmp_path: Path,
) -> None:
    """Use a tokenizer of 512 tokens with a model whose vocabulary is half of that."""
    shape = Shape(dim=64, layers=1, heads=2, kv_heads=1, hidden=64, vocab=256)
    random = np.random.default_rng(0)
    weights = {
        name: random.standard_normal(dims, dtype=np.float32).astype(np.float16)
        for name, dims in shape.tensors().items()
    }
    write_folder(tmp_path / "model", shape, weights)
    files = {path.name: path for path in (tmp_path / "model").iterdir()}
    engine = registry.find("onnx").load(LoadSpec(files, Task.TEXT_GENERATION, 64, threads=1))
    with pytest.raises(ModelFaultError, match="vocabulary has 256") as caught:
        list(engine.generate("the program", Sampling(max_tokens=2)))
    assert "tokenizer" in caught.value.advice
    assert list(engine.generate("a", Sampling(max_tokens=2)))
    engine.close()


def merged(folder: Path, out: Path) -> Path:
    """Copy a decoder with Optimum's ``use_cache_branch``; without a cache, token 65 wins."""
    shutil.copytree(folder, out)
    model = onnx.load(out / "model.onnx")
    (out / "model.onnx").unlink()
    for node in model.graph.node:
        node.output[:] = ["plain" if name == "logits" else name for name in node.output]

    def branch(name: str, bias: float) -> onnx.GraphProto:
        values = np.zeros(512, np.float32)
        values[65] = bias
        constant = numpy_helper.from_array(values)
        nodes = [helper.make_node("Constant", [], [name], value=constant)]
        return helper.make_graph(
            nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [512])]
        )

    choice = helper.make_node(
        "If",
        ["use_cache_branch"],
        ["bias"],
        then_branch=branch("with_cache", 0),
        else_branch=branch("without_cache", 1e4),
    )
    model.graph.node.extend([choice, helper.make_node("Add", ["plain", "bias"], ["logits"])])
    model.graph.input.append(
        helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])
    )
    onnx.save(model, out / "decoder_model_merged.onnx")
    for name in ("decoder_model.onnx", "decoder_with_past_model.onnx"):
        shutil.copy(out / "decoder_model_merged.onnx", out / name)
    return out


def test_a_merged_decoder_reads_its_cache_after_the_first_pass(
    demo_models: Path, tmp_path: Path
) -> None:
    folder = merged(demo_models / "base-onnx", tmp_path / "merged")
    source = open_source(folder)
    assert source.path.name == "decoder_model_merged.onnx"
    assert source.inspection.task is Task.TEXT_GENERATION
    files = {name: path for name, path in source.files.items() if path.suffix == ".json"}
    engine = registry.find("onnx").load(
        LoadSpec(files | {"model.onnx": source.path}, Task.TEXT_GENERATION, threads=1)
    )
    first, *others = [piece.token for piece in engine.generate("The", Sampling(max_tokens=6))]
    engine.close()
    assert first == 65
    assert len(set(others)) > 1
