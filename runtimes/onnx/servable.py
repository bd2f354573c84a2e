"""Rewrite outputs that no device can serve into tensors.

Converters of scikit-learn end classifiers with ZipMap, which turns a tensor of probabilities into a
sequence of maps from class to probability. The tensor itself is served instead. Class names go to
the model's metadata.
"""

from pathlib import Path
from typing import Any, Final

import onnx

from runtimes.onnx.model_file import read_model

_OPERATOR: Final = "ZipMap"
_PROPERTY: Final = "flotilla.classes"
_MAX_CLASSES_TEXT: Final = 300


def write_servable(source: Path, destination: Path) -> str:
    """Write a copy whose outputs are tensors; return the changes, or "" if none are needed."""
    if _OPERATOR not in read_model(source).operators:
        return ""
    # External weights stay where they are; only the graph changes.
    model = onnx.load(source, load_external_data=False)
    classes = _unfold(model)
    if classes is None:
        return ""
    changes = ["ZipMap unfolded into a tensor"]
    if dropped := _drop_text_outputs(model.graph):
        changes.append(f"text output {', '.join(dropped)} left out")
    names = ", ".join(classes)
    entry = model.metadata_props.add()
    entry.key, entry.value = _PROPERTY, names
    destination.write_bytes(model.SerializeToString(deterministic=True))
    return f"{'; '.join(changes)}; classes: {names}"[:_MAX_CLASSES_TEXT]


def _unfold(model: onnx.ModelProto) -> list[str] | None:
    """Let each ZipMap's output be the tensor that it reads; return the class names."""
    graph = model.graph
    outputs = {value.name: value for value in graph.output}
    classes: list[str] = []
    kept = []
    for node in graph.node:
        if node.op_type != _OPERATOR or node.output[0] not in outputs:
            kept.append(node)
            continue
        labels = {attribute.name: attribute for attribute in node.attribute}
        classes = [label.decode() for label in _list(labels, "classlabels_strings")] or [
            str(label) for label in _list(labels, "classlabels_int64s")
        ]
        value = outputs[node.output[0]]
        value.CopyFrom(
            onnx.helper.make_tensor_value_info(
                value.name, onnx.TensorProto.FLOAT, [None, len(classes) or None]
            )
        )
        kept.append(onnx.helper.make_node("Identity", [node.input[0]], [node.output[0]], node.name))
    if not classes:
        return None
    copies = list(kept)
    del graph.node[:]
    graph.node.extend(copies)
    return classes


def _list(labels: dict[str, Any], name: str) -> list[Any]:
    attribute = labels.get(name)
    if attribute is None:
        return []
    return list(attribute.strings or attribute.ints)


def _drop_text_outputs(graph: onnx.GraphProto) -> list[str]:
    """Remove outputs of strings: labels, which the class names and probabilities give too."""
    dropped = [
        value.name
        for value in graph.output
        if value.type.tensor_type.elem_type == onnx.TensorProto.STRING
    ]
    kept = [value for value in graph.output if value.name not in dropped]
    if dropped:
        copies = list(kept)
        del graph.output[:]
        graph.output.extend(copies)
    return dropped
