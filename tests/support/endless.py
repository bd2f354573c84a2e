"""An ONNX model that works for as long as it is told: it counts to ``rounds``."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def write_model(path: Path) -> Path:
    """Writes it; gives back its path."""

    def value(name: str, kind: int = TensorProto.INT64) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, [])

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Add", ["count", "one"], ["next"]),
        ],
        "round",
        [value("round"), value("go", TensorProto.BOOL), value("count")],
        [value("on", TensorProto.BOOL), value("next")],
    )
    constants = [
        helper.make_tensor("zero", TensorProto.INT64, [], [0]),
        helper.make_tensor("one", TensorProto.INT64, [], [1]),
    ]
    graph = helper.make_graph(
        [helper.make_node("Loop", ["rounds", "", "zero"], ["counted"], body=body)],
        "count",
        [value("rounds")],
        [value("counted")],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
