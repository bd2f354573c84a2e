"""Normalize an ONNX graph before quantizing, so that schemes find every weight once.

The quantizers look for initializers. Exporters also keep weights in Constant nodes, and tie
matrices with Identity nodes, which would each get a quantized copy.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper

# An attribute of a Constant node with another name holds a scalar or list, not a weight.
_TENSOR_ATTRIBUTE: Final = "value"
_FLOAT: Final = onnx.TensorProto.FLOAT
_FLOAT16: Final = onnx.TensorProto.FLOAT16


def normalize(model: onnx.ModelProto) -> None:
    """Turn constants into initializers, and remove Identity nodes and copies of initializers."""
    graph = model.graph
    _lift_constants(graph)
    _merge_copies(graph)
    _drop_identities(graph)
    _drop_unread(graph)


def non_finite_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of nodes that read a weight with NaN or infinity; name unnamed nodes.

    Scales of quantized weights are computed from the largest value: one infinity turns every value
    of the tensor into NaN.
    """
    bad = {tensor.name for tensor in model.graph.initializer if not is_finite(tensor)}
    found = []
    for number, node in enumerate(model.graph.node):
        if bad.intersection(node.input):
            node.name = node.name or f"{node.op_type}_{number}"
            found.append(node.name)
    return found


def is_finite(tensor: onnx.TensorProto) -> bool:
    """Return True if a tensor has no NaN and no infinity; tensors of other types have none."""
    if tensor.data_type not in {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.DOUBLE,
    }:
        return True
    return bool(np.isfinite(numpy_helper.to_array(tensor)).all())


def _lift_constants(graph: onnx.GraphProto) -> None:
    kept = []
    for node in graph.node:
        values = [each.t for each in node.attribute if each.name == _TENSOR_ATTRIBUTE]
        if node.op_type == "Constant" and node.domain == "" and len(values) == 1:
            values[0].name = node.output[0]
            graph.initializer.append(values[0])
        else:
            kept.append(node)
    _replace_nodes(graph, kept)


def _merge_copies(graph: onnx.GraphProto) -> None:
    """Make nodes that read equal matrices read the same one, as tied embeddings do."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same: dict[str, str] = {}
    for tensor in graph.initializer:
        if len(tensor.dims) < 2 or tensor.data_type == onnx.TensorProto.STRING:  # noqa: PLR2004
            continue
        content = tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
        key = (tensor.data_type, tuple(tensor.dims), content)
        # The first tensor with these bytes stays; _drop_unread removes the others.
        original = first.setdefault(key, tensor.name)
        if original != tensor.name:
            same[tensor.name] = original
    _rename_inputs(graph, same)


def _drop_identities(graph: onnx.GraphProto) -> None:
    initializers = {tensor.name for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    same: dict[str, str] = {}
    kept = []
    for node in graph.node:
        source = node.input[0] if node.input else ""
        source = same.get(source, source)
        if node.op_type == "Identity" and source in initializers and node.output[0] not in outputs:
            same[node.output[0]] = source
        else:
            kept.append(node)
    _replace_nodes(graph, kept)
    _rename_inputs(graph, same)


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {name for inner in _graphs(graph) for node in inner.node for name in node.input}
    read |= {value.name for inner in _graphs(graph) for value in inner.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    if len(kept) < len(graph.initializer):
        gone = {tensor.name for tensor in graph.initializer} - read
        del graph.initializer[:]
        graph.initializer.extend(kept)
        # IR version 3 lists initializers as inputs too.
        inputs = [value for value in graph.input if value.name not in gone]
        del graph.input[:]
        graph.input.extend(inputs)


def _rename_inputs(graph: onnx.GraphProto, same: dict[str, str]) -> None:
    if not same:
        return
    for inner in _graphs(graph):
        for node in inner.node:
            for position, name in enumerate(node.input):
                if name in same:
                    node.input[position] = same[name]


def _graphs(graph: onnx.GraphProto) -> Iterator[Any]:
    """Yield a graph and all its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _replace_nodes(graph: onnx.GraphProto, kept: list[Any]) -> None:
    if len(kept) < len(graph.node):
        copies = list(kept)
        del graph.node[:]
        graph.node.extend(copies)


def widen_halves(model: onnx.ModelProto) -> None:
    """Convert float16 weights and arithmetic to float32; inputs and outputs keep their types."""
    graph = model.graph
    for inner in list(_graphs(graph)):
        for tensor in inner.initializer:
            _widen(tensor)
        for node in inner.node:
            for attribute in node.attribute:
                _widen_attribute(attribute)
        # Inferred types are wrong now; ONNX Runtime infers them again.
        del inner.value_info[:]
    for inner in list(_graphs(graph))[1:]:
        for value in (*inner.input, *inner.output):
            if value.type.tensor_type.elem_type == _FLOAT16:
                value.type.tensor_type.elem_type = _FLOAT
    _cast_ends(graph)


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == _FLOAT16:
        wide = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


def _widen_attribute(attribute: Any) -> None:
    if attribute.name in {"to", "dtype"} and attribute.i == _FLOAT16:
        attribute.i = _FLOAT
    if attribute.type == onnx.AttributeProto.TENSOR:
        _widen(attribute.t)


def _cast_ends(graph: onnx.GraphProto) -> None:
    """Add casts after float16 inputs and before float16 outputs."""
    initializers = {tensor.name for tensor in graph.initializer}
    halves = [
        value.name
        for value in graph.input
        if value.type.tensor_type.elem_type == _FLOAT16 and value.name not in initializers
    ]
    _rename_inputs(graph, {name: f"{name}.f32" for name in halves})
    before = [onnx.helper.make_node("Cast", [n], [f"{n}.f32"], to=_FLOAT) for n in halves]
    after = []
    for value in graph.output:
        if value.type.tensor_type.elem_type == _FLOAT16:
            name = value.name
            for node in graph.node:
                for position, output in enumerate(node.output):
                    if output == name:
                        node.output[position] = f"{name}.f32"
            _rename_inputs(graph, {name: f"{name}.f32"})
            after.append(onnx.helper.make_node("Cast", [f"{name}.f32"], [name], to=_FLOAT16))
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
