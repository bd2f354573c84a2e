"""Weights that decoding one token reads, from a GGUF header."""

from typing import Final

from runtimes.base import Inspection, TensorInfo

# Only one row of it is read, unless the model has no output head and it serves as the head.
_EMBEDDING: Final = "token_embd.weight"
_HEAD: Final = "output.weight"
_EXPERTS: Final = "_exps."


def decode_bytes(inspection: Inspection) -> dict[str, int]:
    """Return bytes by weight type; for a mixture of experts only those of the active experts."""
    names = {tensor.name for tensor in inspection.tensors}
    read: dict[str, int] = {}
    for tensor in inspection.tensors:
        if tensor.name == _EMBEDDING and _HEAD in names:
            continue
        read[tensor.type] = read.get(tensor.type, 0) + _bytes_read(tensor, inspection)
    return read


def _bytes_read(tensor: TensorInfo, inspection: Inspection) -> int:
    if _EXPERTS not in tensor.name:
        return tensor.size
    used, all_of_them = (
        inspection.metadata.get(f"{inspection.architecture}.{key}", "")
        for key in ("expert_used_count", "expert_count")
    )
    if not (used.isdecimal() and all_of_them.isdecimal() and 0 < int(used) <= int(all_of_them)):
        return tensor.size
    return tensor.size * int(used) // int(all_of_them)
