"""Normalizing graphs before quantizing: constants, tied matrices, halves, values not finite."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtimes.base import Scheme
from runtimes.build import BuildRequest, VariantRequest, build
from runtimes.onnx import quantize as quantize_module
from runtimes.onnx.quantize import OnnxQuantizer

WIDTH = 256


def weights(seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((WIDTH, WIDTH)).astype(np.float32) / 16


def save(
    path: Path, nodes: list[Any], initializers: list[Any], kind: int = TensorProto.FLOAT
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, [None, WIDTH])],
        [helper.make_tensor_value_info("y", kind, [None, WIDTH])],
        initializer=initializers,
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def quantize(source: Path, scheme: str) -> Path:
    made = source.with_name(f"{scheme}.onnx")
    OnnxQuantizer().quantize(source, Scheme(scheme), made, lambda *_: None)
    return made


def output(path: Path, x: Any) -> Any:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.fixture
def x() -> Any:
    return np.random.default_rng(1).standard_normal((4, WIDTH)).astype(np.float32)


def tied(path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Identity", ["w"], ["v"]),
        helper.make_node("Identity", ["v"], ["u"]),
        helper.make_node("MatMul", ["a", "u"], ["b"]),
        helper.make_node("MatMul", ["b", "copy"], ["y"]),
    ]
    copies = [numpy_helper.from_array(weights(), name) for name in ("w", "copy")]
    return save(path, nodes, copies)


@pytest.mark.parametrize(("scheme", "share"), [("int8", 0.3), ("int4", 0.2), ("fp16", 0.55)])
def test_tied_matrices_are_quantized_once(
    scheme: str, share: float, tmp_path: Path, x: Any
) -> None:
    source = tied(tmp_path / "tied.onnx")
    made = quantize(source, scheme)
    assert made.stat().st_size < share * WIDTH * WIDTH * 4
    np.testing.assert_allclose(output(made, x), output(source, x), atol=0.5)


def test_weights_in_constant_nodes_are_quantized(tmp_path: Path, x: Any) -> None:
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weights()))
    source = save(
        tmp_path / "constant.onnx", [constant, helper.make_node("MatMul", ["x", "w"], ["y"])], []
    )
    for scheme in ("int8", "int4", "int8_weights"):
        made = quantize(source, scheme)
        assert made.stat().st_size < 0.35 * source.stat().st_size
        np.testing.assert_allclose(output(made, x), output(source, x), atol=0.5)


@pytest.mark.parametrize("scheme", ["int8", "int4", "int8_weights", "fp16"])
def test_a_table_with_a_row_of_minus_infinity_stays_finite_elsewhere(
    scheme: str, tmp_path: Path, x: Any
) -> None:
    table = weights(2)
    table[7] = -np.inf
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Gather", ["table", "row"], ["b"]),
        helper.make_node("MatMul", ["a", "clipped"], ["c"]),
        helper.make_node("Add", ["c", "b"], ["y"]),
    ]
    source = save(
        tmp_path / "table.onnx",
        nodes,
        [
            numpy_helper.from_array(weights(), "w"),
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array(3), "row"),
            numpy_helper.from_array(weights(3), "clipped"),
        ],
    )
    found = output(quantize(source, scheme), x)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, output(source, x), atol=0.5)


def test_a_variant_that_loses_finite_values_is_refused_at_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model: Any, conversion: Any) -> None:
        spoiled = weights()
        spoiled[0, 0] = np.nan
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(spoiled, "w"))
        onnx.save(model, conversion.destination)

    monkeypatch.setitem(quantize_module._SCHEMES, "int8", spoil)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    source = save(tmp_path / "plain.onnx", [node], [numpy_helper.from_array(weights(), "w")])
    request = BuildRequest(
        sources=(source,),
        name="acme/large",
        version="1",
        variants=(VariantRequest("int8", "int8"), VariantRequest("fp32", "fp32")),
        out=tmp_path / "out",
    )
    result = build(request, lambda *_: None)
    (kept,) = result.model.variants
    assert kept.name == "fp32"
    assert kept.trial is not None
    assert kept.trial.relative_error == 0
    refused = next(attempt for attempt in result.attempts if attempt.name == "int8")
    assert (refused.outcome, "NaN or infinite" in refused.reason) == ("failed", True)
    assert not (tmp_path / "out" / "int8").exists()


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_an_fp16_source_is_quantized_and_keeps_its_types(
    scheme: str, tmp_path: Path, x: Any
) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    half = numpy_helper.from_array(weights().astype(np.float16), "w")
    source = save(tmp_path / "half.onnx", [node], [half], TensorProto.FLOAT16)
    made = quantize(source, scheme)
    assert made.stat().st_size < 0.7 * source.stat().st_size
    found = output(made, x.astype(np.float16))
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, output(source, x.astype(np.float16)), atol=0.5)
