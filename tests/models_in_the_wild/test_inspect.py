"""Inspecting published ONNX models, whatever they are made of."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from runtimes.onnx.inspect import OnnxInspector

MODELS = (
    ("magika", "magika/models/standard_v3_3/model.onnx"),
    ("nudenet", "nudenet/320n.onnx"),
    ("rapidocr-onnxruntime", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"),
    ("rapidocr-onnxruntime", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"),
    ("rapidocr-onnxruntime", "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    ("silero-vad", "silero_vad/data/silero_vad.onnx"),
    ("silero-vad", "silero_vad/data/silero_vad_half.onnx"),
    ("silero-vad", "silero_vad/data/silero_vad_16k_sequence.onnx"),
)


def floats(graph: onnx.GraphProto) -> int:
    """Count the float values in initializers and Constant nodes of a graph and its subgraphs."""
    tensors = list(graph.initializer)
    count = 0
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and node.op_type == "Constant":
                tensors.append(attribute.t)
            if attribute.type == onnx.AttributeProto.GRAPH:
                count += floats(attribute.g)
    arrays = (numpy_helper.to_array(tensor) for tensor in tensors)
    return count + sum(array.size for array in arrays if array.dtype.kind == "f")


@pytest.mark.parametrize(("package", "path"), MODELS, ids=[Path(path).stem for _, path in MODELS])
def test_weights_are_counted_wherever_the_graph_keeps_them(
    package: str, path: str, wheel: Callable[[str], Path]
) -> None:
    file = wheel(package) / path
    found = OnnxInspector().inspect(file)
    assert found.parameters == floats(onnx.load(file).graph) > 100_000
    assert found.quantization == "fp32"
    assert len({tensor.name for tensor in found.tensors}) == len(found.tensors)
    data = file.read_bytes()
    largest = max(found.tensors, key=lambda tensor: tensor.size)
    assert largest.size > 10_000
    assert 0 < largest.offset < len(data) - largest.size
    assert found.operators["Conv" if "Conv" in found.operators else "MatMul"] > 0
