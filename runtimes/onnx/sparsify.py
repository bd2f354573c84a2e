"""Magnitude pruning: set the smallest weights of each matrix to zero.

Pruning is unstructured: the file keeps its size and ONNX Runtime computes as much as before. The
gains are a file that compresses better, and a start for fine-tuning a sparse model.
"""

from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper

_WITH_WEIGHTS: Final = frozenset({"Conv", "Gemm", "MatMul"})


def drop_smallest(model: onnx.ModelProto, sparsity: float) -> int:
    """Set this fraction of every float32 matrix to zero in place; return the matrices' number."""
    matrices = _matrices(model.graph)
    for tensor in matrices:
        values = numpy_helper.to_array(tensor).flatten()
        # A stable sort, so that the same source gives the same bytes.
        order = np.argsort(np.abs(values), kind="stable")
        values[order[: int(len(values) * sparsity)]] = 0
        shaped = values.reshape(tuple(tensor.dims))
        tensor.CopyFrom(numpy_helper.from_array(shaped, tensor.name))
    return len(matrices)


def _matrices(graph: Any) -> list[onnx.TensorProto]:
    used = {name for node in graph.node if node.op_type in _WITH_WEIGHTS for name in node.input}
    return [
        tensor
        for tensor in graph.initializer
        if tensor.name in used
        and tensor.data_type == onnx.TensorProto.FLOAT
        and len(tensor.dims) > 1
    ]
