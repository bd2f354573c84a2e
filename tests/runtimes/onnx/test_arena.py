"""ONNX Runtime's memory after runs with many shapes."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from artifact.manifest import Task
from runtimes.base import LoadSpec, TensorValue
from runtimes.onnx.tensors import OnnxTensorEngine

WIDTH = 64
LAYERS = 6
# 13 to 26 MB for each tensor between two layers.
SIZES = (50_000, 1, 100_000, 70_000, 3, 90_000, 60_000, 80_000, 1)


def write_model(path: Path) -> Path:
    """Write a model whose number of rows is free, with one number as output."""
    weights = np.eye(WIDTH, dtype=np.float32)
    nodes, last = [], "x"
    for number in range(LAYERS):
        nodes.append(helper.make_node("MatMul", [last, "w"], [f"m{number}"]))
        last = f"m{number}"
    nodes.append(helper.make_node("ReduceMean", [last], ["y"], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "rows",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())
    return path


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * 4096


def rows(count: int) -> TensorValue:
    return TensorValue("x", "FP32", (count, WIDTH), np.ones((count, WIDTH), np.float32).tobytes())


def test_the_arena_is_trimmed_after_runs_with_new_shapes(tmp_path: Path) -> None:
    """Without trimming more than 100 MB stay."""
    path = write_model(tmp_path / "model.onnx")
    engine = OnnxTensorEngine(
        LoadSpec(files={path.name: path}, task=Task.TENSOR, context_length=0, threads=1)
    )
    engine.infer([rows(1)])
    before = resident_bytes()
    for size in SIZES:
        (output,) = engine.infer([rows(size)])
        assert np.frombuffer(output.data, np.float32)[0] == 1.0
    assert resident_bytes() - before < 32 << 20
    engine.close()
