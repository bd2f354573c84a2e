"""Models whose inputs or outputs are not plain tensors: unfolded, or refused with advice."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from artifact.manifest import Task, Variant
from runtimes import registry
from runtimes.arrays import to_array, to_value
from runtimes.base import LoadSpec
from runtimes.build import BuildRequest, BuildResult, VariantRequest, build
from runtimes.errors import RuntimeFault

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
ANIMALS = ["cat", "dog", "owl"]


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> Path:
    weights = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
    graph = helper.make_graph(
        nodes, "g", inputs, outputs, initializer=[numpy_helper.from_array(weights, "w")]
    )
    onnx.save(helper.make_model(graph, opset_imports=OPSETS, ir_version=8), path)
    return path


def classifier(path: Path, *, text: bool) -> Path:
    """Save a classifier that ends as skl2onnx writes it: a label and a sequence of maps."""
    labels = {"classlabels_strings": ANIMALS} if text else {"classlabels_int64s": [3, 5, 8]}
    key = TensorProto.STRING if text else TensorProto.INT64
    ml = "ai.onnx.ml"
    nodes = [
        helper.make_node(
            "LinearClassifier",
            ["x"],
            ["label", "scores"],
            domain=ml,
            coefficients=[0.1, 0.2, 0.3, 0.4] * 3,
            intercepts=[0.0, 0.1, -0.1],
            multi_class=1,
            post_transform="SOFTMAX",
            **({"classlabels_strings": ANIMALS} if text else {"classlabels_ints": [3, 5, 8]}),
        ),
        helper.make_node("ZipMap", ["scores"], ["probabilities"], domain=ml, **labels),
        helper.make_node("MatMul", ["x", "w"], ["side"]),
    ]
    maps = helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    outputs = [
        helper.make_tensor_value_info("label", key, [None]),
        helper.make_value_info("probabilities", helper.make_sequence_type_proto(maps)),
        helper.make_tensor_value_info("side", TensorProto.FLOAT, [None, 3]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])
    return save(path, nodes, [x], outputs)


def run(source: Path, out: Path, *schemes: str) -> BuildResult:
    variants = tuple(VariantRequest(scheme, scheme) for scheme in schemes)
    request = BuildRequest(
        sources=(source,), name="acme/m", version="1", variants=variants, out=out
    )
    return build(request, lambda *_: None)


def outputs(out: Path, variant: Variant, **inputs: Any) -> dict[str, Any]:
    files = {file.name: out / variant.name / file.name for file in variant.files}
    engine = registry.find("onnx").load(LoadSpec(files, Task.TENSOR, threads=1))
    found = engine.infer([to_value(name, array) for name, array in inputs.items()])
    engine.close()
    return {value.name: to_array(value) for value in found}


@pytest.mark.parametrize("text", [True, False], ids=["text", "numbers"])
@pytest.mark.parametrize("scheme", ["source", "fp32"])
def test_maps_of_probabilities_are_unfolded_into_a_tensor(
    scheme: str, text: bool, tmp_path: Path
) -> None:
    source = classifier(tmp_path / "sk.onnx", text=text)
    (variant,) = run(source, tmp_path / "out", scheme).model.variants
    assert "ZipMap unfolded" in variant.recipe
    assert ("cat, dog, owl" if text else "3, 5, 8") in variant.recipe
    assert variant.trial is not None
    x = np.ones((2, 4), np.float32)
    found = outputs(tmp_path / "out", variant, x=x)
    assert found["probabilities"].shape == (2, 3)
    np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1, rtol=1e-5)
    assert ("label" in found) is not text
    if not text:
        assert found["label"].tolist() == [5, 5]


@pytest.mark.parametrize("where", ["input", "output", "sequence"])
def test_what_no_device_can_serve_is_refused_at_build(where: str, tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    ends = ([x], [y])
    text = TensorProto.STRING
    if where == "input":
        nodes.append(helper.make_node("Identity", ["s"], ["t"]))
        ends = ([x, helper.make_tensor_value_info("s", text, [1])], [y])
    elif where == "output":
        nodes.append(helper.make_node("Cast", ["y"], ["t"], to=text))
        ends = ([x], [y, helper.make_tensor_value_info("t", text, [None, 3])])
    else:
        nodes.append(helper.make_node("SequenceConstruct", ["y"], ["t"]))
        kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [None, 3]))
        ends = ([x], [y, helper.make_value_info("t", kind)])
    source = save(tmp_path / "odd.onnx", nodes, *ends)
    with pytest.raises(RuntimeFault, match="which devices cannot serve") as caught:
        run(source, tmp_path / "out", "source")
    assert "outside the model" in caught.value.advice
    assert not (tmp_path / "out").exists()


def test_scalars_empty_tensors_and_all_plain_types_are_served(tmp_path: Path) -> None:
    kinds = {"i": TensorProto.INT64, "h": TensorProto.FLOAT16, "b": TensorProto.BOOL}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    nodes += [helper.make_node("Identity", [name], [f"{name}.out"]) for name in kinds]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])]
    inputs += [helper.make_tensor_value_info(name, kind, []) for name, kind in kinds.items()]
    ends = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])]
    ends += [helper.make_tensor_value_info(f"{name}.out", kind, []) for name, kind in kinds.items()]
    source = save(tmp_path / "kinds.onnx", nodes, inputs, ends)
    (variant,) = run(source, tmp_path / "out").model.variants
    assert variant.input_shapes == {"x": (1, 4), "i": (), "h": (), "b": ()}
    found = outputs(
        tmp_path / "out",
        variant,
        x=np.zeros((0, 4), np.float32),
        i=np.array(7),
        h=np.array(0.5, np.float16),
        b=np.array(True),
    )
    assert found["y"].shape == (0, 3)
    assert (found["i.out"], found["h.out"], found["b.out"]) == (7, 0.5, True)
