"""A low-rank adapter as GGUF, as llama.cpp's convert_lora_to_gguf.py writes it.

The adapter is what a fine-tune changed, cut to its largest singular values: no training, and it
still moves the base toward the fine-tune.
"""

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from demo_models.gguf_export import gguf_layout, gguf_name
from demo_models.weights import Shape, Weights


def write_lora(
    path: Path, name: str, shape: Shape, *, base: Weights, tuned: Weights, rank: int
) -> None:
    """Write lora_a and lora_b in f16 for every matrix in which the two models differ."""
    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    # llama.cpp scales by alpha / rank.
    writer.add_float32("adapter.lora.alpha", float(rank))
    writer.add_name(name)
    writer.add_license("apache-2.0")
    for hf_name, dims in shape.tensors().items():
        change = tuned[hf_name].astype(np.float32) - base[hf_name].astype(np.float32)
        if len(dims) == 1 or not change.any():
            continue
        left, sizes, right = np.linalg.svd(gguf_layout(hf_name, change, shape))
        scale = np.sqrt(sizes[:rank])
        weight = gguf_name(hf_name)
        writer.add_tensor(f"{weight}.lora_a", (scale[:, None] * right[:rank]).astype(np.float16))
        writer.add_tensor(f"{weight}.lora_b", (left[:, :rank] * scale).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
