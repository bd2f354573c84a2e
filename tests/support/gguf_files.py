"""GGUF files with changed metadata."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np


def rewrite(
    source: Path, destination: Path, changes: dict[str, str | bool | list[Any] | None]
) -> Path:
    """Copy a GGUF file, with some metadata replaced, added or (None) removed."""
    reader = gguf.GGUFReader(source)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    writer = gguf.GGUFWriter(destination, fields.pop("general.architecture").contents())
    for key, field in fields.items():
        value = changes.get(key, field.contents())
        if value is not None:
            element = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, value, field.types[0], element)
    for key, value in changes.items():
        if key not in fields and value is not None:
            (writer.add_bool if isinstance(value, bool) else writer.add_string)(key, value)  # type: ignore[operator]
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return destination


def mixture(source: Path, destination: Path, experts: int = 4) -> Path:
    """Make a mixture of a Llama GGUF: each layer's feed-forward matrices become the experts."""
    reader = gguf.GGUFReader(source)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    writer = gguf.GGUFWriter(destination, fields.pop("general.architecture").contents())
    for key, field in fields.items():
        element = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), field.types[0], element)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(2)
    for tensor in reader.tensors:
        if not any(kind in tensor.name for kind in ("ffn_gate", "ffn_up", "ffn_down")):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        stacked = np.stack([tensor.data] * experts)
        name = tensor.name.replace(".weight", "_exps.weight")
        writer.add_tensor(name, stacked, raw_dtype=tensor.tensor_type)
        if "ffn_gate" in tensor.name:
            width = tensor.data.shape[-1]
            router = np.random.default_rng(0).standard_normal((experts, width), np.float32)
            writer.add_tensor(tensor.name.replace("ffn_gate", "ffn_gate_inp"), router)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return destination
