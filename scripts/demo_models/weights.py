"""The demo language models' weights: Hugging Face names and layout, in float16."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
TOKENIZER = HERE / "tokenizer.json"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

Weights = dict[str, NDArray[np.float16]]


@dataclass(frozen=True)
class Shape:
    """Dimensions of a Llama; the defaults are the demo model's."""

    dim: int = 256
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 512
    vocab: int = 512
    context: int = 512
    rope_theta: float = 10_000.0
    epsilon: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight; embeddings are tied."""
        kv_width = self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (self.vocab, self.dim)}
        for layer in range(self.layers):
            prefix = f"layers.{layer}."
            shapes |= {
                f"{prefix}input_layernorm.weight": (self.dim,),
                f"{prefix}self_attn.q_proj.weight": (self.dim, self.dim),
                f"{prefix}self_attn.k_proj.weight": (kv_width, self.dim),
                f"{prefix}self_attn.v_proj.weight": (kv_width, self.dim),
                f"{prefix}self_attn.o_proj.weight": (self.dim, self.dim),
                f"{prefix}post_attention_layernorm.weight": (self.dim,),
                f"{prefix}mlp.gate_proj.weight": (self.hidden, self.dim),
                f"{prefix}mlp.up_proj.weight": (self.hidden, self.dim),
                f"{prefix}mlp.down_proj.weight": (self.dim, self.hidden),
            }
        return shapes | {"norm.weight": (self.dim,)}

    def parameters(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.tensors().values())


def base() -> Weights:
    with np.load(HERE / "base.npz") as file:
        return {name: file[name] for name in Shape().tensors()}


def finetune() -> Weights:
    """Return the base model's weights with a fine-tuned last layer."""
    with np.load(HERE / "finetune.npz") as file:
        return base() | {name: file[name] for name in file.files}


def broken() -> Weights:
    """Return a broken copy of the base: values shuffled within every feed-forward weight."""
    damaged = base()
    for position, name in enumerate(sorted(damaged)):
        if ".mlp." in name:
            shuffled = damaged[name].flatten()
            np.random.default_rng(position).shuffle(shuffled)
            damaged[name] = shuffled.reshape(damaged[name].shape)
    return damaged


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and merges of the byte-level BPE, in GPT-2's spelling of bytes."""

    tokens: list[str]
    merges: list[str]


def vocabulary() -> Vocabulary:
    model = json.loads(TOKENIZER.read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return Vocabulary(tokens, merges)
