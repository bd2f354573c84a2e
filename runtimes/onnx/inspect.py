"""Inspect an ONNX model: its file and the configuration beside it."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from artifact.manifest import Task
from runtimes.base import Inspection, TensorSpec
from runtimes.errors import UnsafeFileError
from runtimes.onnx.encoder import is_encoder, width_of
from runtimes.onnx.model_file import ModelFile, read_model
from runtimes.onnx.side_files import ModelConfig, read_config

PAST: Final = "past_key_values."
# Tensors of these types are shapes, axes and labels, not weights.
_NO_WEIGHTS: Final = frozenset({"int64", "int32", "bool", "string"})


class OnnxInspector:
    def inspect(self, path: Path) -> Inspection:
        model = read_model(path)
        check_external(model, path, {name: path.with_name(name) for name in model.external})
        config = read_config(path.with_name("config.json"))
        task = _task(model)
        text = task in (Task.TEXT_GENERATION, Task.EMBEDDING)
        return Inspection(
            format="onnx",
            task=task,
            architecture=config.model_type or "onnx",
            parameters=_parameters(model),
            quantization=_quantization(model),
            context_length=config.max_position_embeddings if text else 0,
            tensors=tuple(model.tensors),
            metadata=_metadata(model, config),
            operators=dict(model.operators),
        )


def is_text_generation(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> bool:
    """Return True for a decoder in Optimum's layout."""
    names = {spec.name for spec in inputs}
    caches = any(name.startswith(PAST) for name in names)
    return caches and "input_ids" in names and any(spec.name == "logits" for spec in outputs)


def check_external(model: ModelFile, path: Path, places: Mapping[str, Path]) -> None:
    """Raise UnsafeFileError unless every file with external weights is present and complete."""
    for name, needed in model.external.items():
        place = places.get(name)
        if place is None or place.is_symlink() or not place.is_file():
            raise UnsafeFileError(
                f"{path.name} keeps weights in {name}, which is not a file beside it",
                advice="Give the whole folder of the export.",
            )
        if needed > place.stat().st_size:
            raise UnsafeFileError(
                f"{name} is {place.stat().st_size:,} bytes; the weights need {needed:,}",
                advice="Fetch or export the folder again.",
            )


def _task(model: ModelFile) -> Task:
    if is_text_generation(model.inputs, model.outputs):
        return Task.TEXT_GENERATION
    if is_encoder((each.name for each in model.inputs), (each.name for each in model.outputs)):
        return Task.EMBEDDING
    # Our own exports state the task; graphs of others are tensors.
    named = model.properties.get("task")
    return Task.CLASSIFICATION if named == Task.CLASSIFICATION else Task.TENSOR


def _parameters(model: ModelFile) -> int:
    plain = sum(
        math.prod(tensor.shape)
        for tensor in model.tensors
        if tensor.type not in _NO_WEIGHTS and tensor.name not in model.packed_names
    )
    packed = sum(outputs * inputs for outputs, inputs, _ in model.packed)
    return plain + packed + model.attribute_values


def _quantization(model: ModelFile) -> str:
    """Name the scheme by the graph's operators, else by the type of most bytes of its weights."""
    # A graph may mix schemes; the one with the fewest bits names it.
    if model.packed:
        bits = min(bits for _, _, bits in model.packed)
        return "int8_weights" if bits == 8 else f"int{bits}"  # noqa: PLR2004 - int8 is the dynamic one
    if any(kind.endswith("MatMulInteger") for kind in model.operators):
        return "int8"
    if "QuantizeLinear" in model.operators:
        return "int8_static"
    if "DynamicQuantizeLinear" in model.operators:
        return "int8"
    sizes: Counter[str] = Counter()
    for tensor in model.tensors:
        if tensor.type not in _NO_WEIGHTS:
            sizes[tensor.type] += tensor.size
    if not sizes:
        # Tree ensembles and linear models keep float32 values in attributes; other graphs none.
        return "fp32" if model.attribute_values else "none"
    return sizes.most_common(1)[0][0]


def _metadata(model: ModelFile, config: ModelConfig) -> dict[str, str]:
    """Return inputs and outputs as text, and the figures that the memory estimate needs."""
    caches = [spec for spec in model.inputs if spec.name.startswith(PAST)]
    logits = [spec for spec in model.outputs if spec.name == "logits"]
    return {
        "inputs": "; ".join(_described(spec) for spec in model.inputs),
        "outputs": "; ".join(_described(spec) for spec in model.outputs),
        "cache_values_per_token": str(
            sum(math.prod(size for size in spec.shape if size > 0) for spec in caches)
        ),
        "attention_heads": str(config.heads),
        "vocabulary": str(logits[0].shape[-1] if logits and logits[0].shape else 0),
        "width": str(width_of((spec.name, spec.shape) for spec in model.outputs)),
        "scale_bytes": str(
            sum(
                tensor.size
                for tensor in model.tensors
                if tensor.name in model.packed_names and tensor.type.startswith("fp")
            )
        ),
    }


def _described(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.datatype} {list(spec.shape)}"
