"""Memory estimate of a GGUF model, from its header.

Weights take their size in the file; keys and values are cached in f16, llama.cpp's default; compute
buffers hold one batch's activations, the attention mask and the logits of MAX_OUTPUTS positions.
The widths of the activations are fitted to llama.cpp's reservations
(tests/runtimes/test_memory.py).
"""

from typing import Final

from artifact.manifest import Task
from runtimes.base import Inspection
from runtimes.errors import UnsupportedModelError
from runtimes.llama_cpp.limits import BATCH_TOKENS, DEFAULT_CONTEXT, MAX_OUTPUTS

_F16_BYTES: Final = 2
_F32_BYTES: Final = 4


def estimate(inspection: Inspection, size_bytes: int, context_length: int) -> int:
    """Return the predicted peak in bytes; UnsupportedModelError without the dimensions."""
    embeds = inspection.task is Task.EMBEDDING
    usual = BATCH_TOKENS if embeds else DEFAULT_CONTEXT
    context = context_length or min(inspection.context_length, usual)
    # An encoder reads a whole text in one pass.
    batch = context if embeds else min(BATCH_TOKENS, context)
    dim = _dimension(inspection, "embedding_length")
    heads = _dimension(inspection, "attention.head_count")
    kv_heads = _dimension(inspection, "attention.head_count_kv", heads)
    key_width = _dimension(inspection, "attention.key_length", dim // heads)
    value_width = _dimension(inspection, "attention.value_length", dim // heads)
    layers = _dimension(inspection, "block_count")
    hidden = _dimension(inspection, "feed_forward_length", 4 * dim)
    cache = layers * context * kv_heads * (key_width + value_width) * _F16_BYTES
    activations = batch * (4 * dim + 2 * hidden) * _F32_BYTES
    mask = batch * context * _F16_BYTES
    logits = MAX_OUTPUTS * _vocabulary(inspection) * _F32_BYTES
    return size_bytes + cache + activations + mask + logits


def _dimension(inspection: Inspection, key: str, default: int | None = None) -> int:
    full_key = f"{inspection.architecture}.{key}"
    text = inspection.metadata.get(full_key)
    if text is not None and text.isdecimal() and 0 < int(text) < 1 << 32:
        return int(text)
    if text is None and default is not None:
        return default
    raise UnsupportedModelError(
        f"the model's memory cannot be predicted: its header has {full_key} = {text}",
        advice="Export the model again with a current converter.",
    )


def _vocabulary(inspection: Inspection) -> int:
    count = inspection.metadata.get("tokenizer.ggml.tokens#", "0")
    return int(count)
