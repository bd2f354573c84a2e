"""A Llama as a GGUF file, as llama.cpp's convert_hf_to_gguf.py writes it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, LlamaFileType, PoolingType, TokenType
from numpy.typing import NDArray

from demo_models.weights import CHAT_TEMPLATE, Shape, Vocabulary

GGUF_NAMES = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}

ReadTensor = Callable[[str], NDArray[np.float16]]


def write_gguf(
    path: Path,
    name: str,
    shape: Shape,
    vocabulary: Vocabulary,
    read: ReadTensor,
    *,
    encoder: bool = False,
) -> None:
    """Write matrices as f16 and norms as f32, holding one tensor at a time.

    ``read`` gives a weight by its Hugging Face name. As an ``encoder`` it says that the hidden
    states of a text are averaged.
    """
    writer = GGUFWriter(path, "llama")
    _add_metadata(writer, name, shape, vocabulary)
    if encoder:
        writer.add_pooling_type(PoolingType.MEAN)
    tensors = shape.tensors()
    for hf_name, dims in tensors.items():
        dtype = np.dtype(np.float16 if len(dims) > 1 else np.float32)
        size = int(np.prod(dims)) * dtype.itemsize
        writer.add_tensor_info(gguf_name(hf_name), dims, dtype, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for hf_name in tensors:
        writer.write_tensor_data(gguf_layout(hf_name, read(hf_name), shape))
    writer.close()


def gguf_name(hf_name: str) -> str:
    """Map layers.3.mlp.up_proj.weight to blk.3.ffn_up.weight."""
    if hf_name in GGUF_NAMES:
        return GGUF_NAMES[hf_name]
    _, layer, rest = hf_name.split(".", 2)
    return f"blk.{layer}.{GGUF_NAMES[rest]}"


def gguf_layout(
    hf_name: str, weight: NDArray[np.float16] | NDArray[np.float32], shape: Shape
) -> NDArray[np.float16] | NDArray[np.float32]:
    """Return a weight with its rows in GGUF's order."""
    if weight.ndim == 1:
        return weight.astype(np.float32)
    if "q_proj" in hf_name:
        return _interleave(weight, shape.heads)
    if "k_proj" in hf_name:
        return _interleave(weight, shape.kv_heads)
    return weight


def _interleave(
    weight: NDArray[np.float16] | NDArray[np.float32], heads: int
) -> NDArray[np.float16] | NDArray[np.float32]:
    """Interleave rotary halves: ``LlamaModel.permute`` of convert_hf_to_gguf.py."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2)
    return np.ascontiguousarray(pairs.reshape(rows, columns))


def _add_metadata(writer: GGUFWriter, name: str, shape: Shape, vocabulary: Vocabulary) -> None:
    writer.add_name(name)
    writer.add_license("apache-2.0")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.tokens)
    normal = len(vocabulary.tokens) - 1
    writer.add_token_types([TokenType.CONTROL, *[TokenType.NORMAL] * normal])
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)
