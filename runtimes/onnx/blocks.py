"""4- or 8-bit weights in blocks: MatMul with a constant matrix becomes com.microsoft.MatMulNBits.

ONNX Runtime's own tool needs another package and configures logging on import, so this module
implements the format from its specification:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits
"""

from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from runtimes.onnx.graph import is_finite

# Values that share one scale; 32 is what llama.cpp's 4-bit formats use too.
BLOCK_VALUES: Final = 32
# The sizes that the operator allows.
BLOCK_SIZES: Final = (16, 32, 64, 128, 256)
# Scales tried per block, as fractions of the scale that represents its largest value exactly.
_SCALE_PARTS: Final = (1.0, 0.95, 0.9, 0.85, 0.8)
# MatMulNBits computes in int8 instead of float32 (its accuracy_level).
_INT8_ARITHMETIC: Final = 4


def quantize_matrices(
    model: onnx.ModelProto, bits: int = 4, block_values: int = BLOCK_VALUES
) -> int:
    """Replace the model's constant float32 matrices in place; return their number."""
    graph = model.graph
    matrices = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and len(tensor.dims) == 2  # noqa: PLR2004
        and is_finite(tensor)
    }
    replaced: set[str] = set()
    for node in graph.node:
        if node.op_type == "MatMul" and node.domain == "" and node.input[1] in matrices:
            tensor = matrices[node.input[1]]
            if tensor.name not in replaced:
                graph.initializer.extend(_packed_tensors(tensor, bits, block_values))
                replaced.add(tensor.name)
            node.CopyFrom(_packed_node(node, tensor, bits, block_values))
    _drop_unused(graph, replaced)
    if replaced and all(opset.domain != "com.microsoft" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return len(replaced)


def pack_blocks(
    matrix: NDArray[np.float32], bits: int = 4, block_values: int = BLOCK_VALUES
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Quantize a matrix (inputs, outputs).

    Returns quants (outputs, blocks, bytes), whose zero point is half their range, and scales
    (outputs, blocks). For each block, a few scales are tried, and the one with the least squared
    error is kept.
    """
    zero, highest = 1 << (bits - 1), (1 << bits) - 1
    inputs, outputs = matrix.shape
    blocks = -(-inputs // block_values)
    # Zeros fill the last block; the operator knows the true width (K) and ignores them.
    padded = np.zeros((outputs, blocks * block_values), dtype=np.float32)
    padded[:, :inputs] = matrix.T
    values = padded.reshape(outputs, blocks, block_values)
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=-1)[..., None], axis=-1)
    best_error = np.full((outputs, blocks, 1), np.inf, dtype=np.float32)
    best_quants = np.zeros(values.shape, dtype=np.uint8)
    best_scales = np.zeros(best_error.shape, dtype=np.float32)
    for part in _SCALE_PARTS:
        scales = largest * np.float32(-part / zero)
        # A block of zeros has the scale 0.
        divisors = np.where(scales == 0, np.float32(1), scales)
        quants = np.clip(np.rint(values / divisors) + zero, 0, highest)
        error = np.square((quants - zero) * scales - values).sum(axis=-1, keepdims=True)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scales = np.where(better, scales, best_scales)
        best_quants = np.where(better, quants.astype(np.uint8), best_quants)
    if bits == 4:  # noqa: PLR2004 - two to a byte
        best_quants = best_quants[..., 0::2] | best_quants[..., 1::2] << np.uint8(4)
    return best_quants, best_scales[..., 0]


def _packed_tensors(
    tensor: onnx.TensorProto, bits: int, block_values: int
) -> list[onnx.TensorProto]:
    packed, scales = pack_blocks(numpy_helper.to_array(tensor), bits, block_values)
    return [
        numpy_helper.from_array(packed, f"{tensor.name}.q{bits}"),
        numpy_helper.from_array(scales, f"{tensor.name}.scales"),
    ]


def _packed_node(
    node: onnx.NodeProto, tensor: onnx.TensorProto, bits: int, block_values: int
) -> onnx.NodeProto:
    inputs, outputs = tensor.dims
    return helper.make_node(
        "MatMulNBits",
        [node.input[0], f"{tensor.name}.q{bits}", f"{tensor.name}.scales"],
        list(node.output),
        node.name,
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=block_values,
        accuracy_level=_INT8_ARITHMETIC,
    )


def _drop_unused(graph: Any, names: set[str]) -> None:
    """Remove those of these matrices that no node reads any more."""
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name not in names - used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
