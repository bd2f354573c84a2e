"""GGUF files with changed metadata."""

from pathlib import Path
from typing import Any

import gguf


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
