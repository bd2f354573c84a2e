"""Inspecting ONNX files, hostile and broken ones too: every refusal gives a reason."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifact.manifest import Task
from runtimes.errors import UnsafeFileError
from runtimes.onnx.encoder import width_of
from runtimes.onnx.inspect import OnnxInspector
from tests.security.hostile_files import ONNX, external, sound_onnx, write_onnx


@pytest.mark.parametrize("content", ONNX.values(), ids=ONNX)
def test_a_hostile_model_is_refused_with_advice(content: bytes, tmp_path: Path) -> None:
    path = write_onnx(tmp_path, content)
    with pytest.raises(UnsafeFileError) as caught:
        OnnxInspector().inspect(path)
    assert caught.value.advice


@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(noise=st.binary(max_size=200), at=st.integers(0, 200))
def test_any_bytes_are_read_or_refused_but_never_worse(
    noise: bytes, at: int, tmp_path: Path
) -> None:
    data = sound_onnx().SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data[:at] + noise + data[at + len(noise) :])
    try:
        OnnxInspector().inspect(path)
    except UnsafeFileError as error:
        assert error.advice  # noqa: PT017 - either outcome is right


def test_what_a_plain_model_is(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(sound_onnx().SerializeToString())
    found = OnnxInspector().inspect(path)
    assert (found.task, found.quantization, found.parameters) == (Task.TENSOR, "fp32", 12)
    assert found.metadata["inputs"] == "x FP32 [-1, 4]"


def test_weights_lie_where_they_are_said_to(demo_models: Path) -> None:
    path = demo_models / "base-onnx" / "model.onnx"
    data = path.read_bytes()
    found = {tensor.name: tensor for tensor in OnnxInspector().inspect(path).tensors}
    initializers = onnx.load(path).graph.initializer
    assert {tensor.name for tensor in initializers} == set(found)
    for tensor in initializers:
        info = found[tensor.name]
        assert data[info.offset : info.offset + info.size] == tensor.raw_data


def test_external_weights_are_found_in_their_file(tmp_path: Path) -> None:
    weights = np.arange(12, dtype=np.float32)
    (tmp_path / "weights.bin").write_bytes(bytes(16) + weights.tobytes())
    model = sound_onnx()
    external(location="weights.bin", offset="16", length="48")(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    (tensor,) = OnnxInspector().inspect(path).tensors
    assert (tensor.file, tensor.offset, tensor.size) == ("weights.bin", 16, 48)


def test_what_the_demo_models_are(demo_models: Path) -> None:
    text = OnnxInspector().inspect(demo_models / "base-onnx" / "model.onnx")
    assert (text.task, text.architecture, text.context_length) == (
        Task.TEXT_GENERATION,
        "llama",
        512,
    )
    digits = OnnxInspector().inspect(demo_models / "digits.onnx")
    assert digits.task is Task.CLASSIFICATION


def test_an_encoder_is_as_wide_as_its_hidden_states() -> None:
    """Take the width of hidden states, not of a narrower pooled output, to predict memory."""
    tokens, pooled = ("token_embeddings", (-1, -1, 768)), ("sentence_embedding", (-1, 128))
    assert width_of([tokens, pooled]) == width_of([pooled, tokens]) == 768
    assert (
        width_of([("sentence_embedding", ("batch", "Divsentence_embedding_dim_1")), tokens]) == 768
    )
    assert width_of([("sentence_embedding", (None,))]) == 0


@pytest.mark.parametrize(
    ("said", "heads"),
    [
        ({"num_attention_heads": 12}, "12"),
        ({"n_heads": 12}, "12"),
        ({"n_head": 12}, "12"),
        ({"num_attention_heads": [1, 2, 5, 8]}, "0"),
        ({}, "0"),
    ],
)
def test_the_heads_that_memory_is_predicted_by_are_said_in_several_ways(
    said: dict[str, object], heads: str, demo_models: Path, tmp_path: Path
) -> None:
    source = demo_models / "embed-onnx"
    config = json.loads((source / "config.json").read_text())
    del config["num_attention_heads"]
    (tmp_path / "model.onnx").write_bytes((source / "model.onnx").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | said))
    assert OnnxInspector().inspect(tmp_path / "model.onnx").metadata["attention_heads"] == heads


def test_a_graph_without_weights_is_described(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, 1, [2]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:]))
    onnx.save(model, tmp_path / "relu.onnx")
    found = OnnxInspector().inspect(tmp_path / "relu.onnx")
    assert (found.quantization, found.parameters, found.operators) == ("none", 0, {"Relu": 1})


def test_a_tree_ensemble_is_described_by_its_operator(tmp_path: Path) -> None:
    onnx.save(tree_ensemble(), tmp_path / "trees.onnx")
    found = OnnxInspector().inspect(tmp_path / "trees.onnx")
    assert (found.quantization, found.operators["TreeEnsembleRegressor"]) == ("fp32", 1)
    assert found.parameters == 5


def test_operators_of_the_models_own_functions_are_known(tmp_path: Path) -> None:
    model = sound_onnx()
    function = onnx.helper.make_function(
        "pkg.mine",
        "Twice",
        ["a"],
        ["b"],
        [onnx.helper.make_node("Add", ["a", "a"], ["b"])],
        [onnx.helper.make_opsetid("", 17)],
    )
    model.functions.append(function)
    model.opset_import.append(onnx.helper.make_opsetid("pkg.mine", 1))
    model.graph.node.append(onnx.helper.make_node("Twice", ["x"], ["t"], domain="pkg.mine"))
    onnx.save(model, tmp_path / "f.onnx")
    assert OnnxInspector().inspect(tmp_path / "f.onnx").operators["Twice"] == 1
    del model.functions[:]
    onnx.save(model, tmp_path / "f.onnx")
    with pytest.raises(UnsafeFileError, match=r"unknown domain 'pkg\.mine'"):
        OnnxInspector().inspect(tmp_path / "f.onnx")


def tree_ensemble() -> onnx.ModelProto:
    """Return a regression tree with one split and two leaves."""
    node = onnx.helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_values=[0.5, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        target_treeids=[0, 0],
        target_nodeids=[1, 2],
        target_ids=[0, 0],
        target_weights=[1.0, 2.0],
    )
    ends = [
        onnx.helper.make_tensor_value_info("x", 1, [None, 2]),
        onnx.helper.make_tensor_value_info("y", 1, [None, 1]),
    ]
    graph = onnx.helper.make_graph([node], "trees", ends[:1], ends[1:])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
