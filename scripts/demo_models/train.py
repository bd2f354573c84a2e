# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=2.0", "tokenizers>=0.21", "torch>=2.6"]
# ///
"""Train the demo language model and its fine-tune; run once, the result is committed.

Writes beside this file ``tokenizer.json`` (byte-level BPE), ``base.npz`` (float16 weights of the
base model), ``finetune.npz`` (the weights of its last layer after fine-tuning) and ``heldout.txt``
(text neither run saw, for measuring quality). Corpus: the language reference that ships inside
CPython (``pydoc_data.topics``) and the docstrings of its standard library; the fine-tune sees the
licence texts that Debian ships. Weight names and shapes are Hugging Face's for ``LlamaModel``
(rotary halves, not interleaved pairs), so exporters can follow the public converters.
"""

import argparse
import ast
import math
import sysconfig
from pathlib import Path
from pydoc_data import topics

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

HERE = Path(__file__).parent
DIM, LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, VOCAB = 256, 2, 4, 2, 64, 512, 512
CONTEXT, BATCH, ROPE_THETA, EPSILON = 512, 8, 10_000.0, 1e-5
HELDOUT_BYTES = 24_000


def reference_text() -> list[str]:
    """Return the Python language reference, one document per topic."""
    return [text for _, text in sorted(topics.topics.items())]


def docstrings(limit_bytes: int) -> list[str]:
    """Return the docstrings of the standard library's modules, classes and functions."""
    found: list[str] = []
    size = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) > 120:
                    found.append(text + "\n")
                    size += len(text)
        if size > limit_bytes:
            break
    return found


def licence_text() -> list[str]:
    """Return the licences under /usr/share/common-licenses."""
    return [
        path.read_text(encoding="utf-8", errors="replace")
        for path in sorted(Path("/usr/share/common-licenses").iterdir())
        if not path.is_symlink()
    ]


def train_tokenizer(documents: list[str]) -> Tokenizer:
    """Train GPT-2's byte-level BPE, so that llama.cpp's ``gpt-2`` pre-tokenizer splits alike."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(DIM))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (DIM,), self.weight, EPSILON)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding on halves, as transformers' ``apply_rotary_pos_emb``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(DIM, HEADS * HEAD_DIM, bias=False)
        self.k_proj = nn.Linear(DIM, KV_HEADS * HEAD_DIM, bias=False)
        self.v_proj = nn.Linear(DIM, KV_HEADS * HEAD_DIM, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD_DIM, DIM, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = rotate(self.q_proj(x).view(batch, length, HEADS, HEAD_DIM).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(batch, length, KV_HEADS, HEAD_DIM).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(batch, length, KV_HEADS, HEAD_DIM).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, HEADS * HEAD_DIM))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(DIM, HIDDEN, bias=False)
        self.up_proj = nn.Linear(DIM, HIDDEN, bias=False)
        self.down_proj = nn.Linear(HIDDEN, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(), RMSNorm()
        self.self_attn, self.mlp = Attention(), Mlp()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, DIM)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = RMSNorm()
        angles = torch.outer(
            torch.arange(CONTEXT).float(),
            ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM),
        )
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        length = tokens.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:length], self.sin[:length])
        return F.linear(self.norm(x), self.embed_tokens.weight)


def encode(tokenizer: Tokenizer, documents: list[str]) -> Tensor:
    ids: list[int] = []
    for document in documents:
        ids += [0, *tokenizer.encode(document).ids]
    return torch.tensor(ids)


def perplexity(model: Llama, tokens: Tensor) -> float:
    model.eval()
    losses = []
    with torch.no_grad():
        for start in range(0, len(tokens) - CONTEXT - 1, CONTEXT):
            window = tokens[start : start + CONTEXT + 1]
            losses.append(F.cross_entropy(model(window[None, :-1])[0], window[1:]).item())
    model.train()
    return math.exp(sum(losses) / len(losses))


def fit(model: Llama, tokens: Tensor, heldout: Tensor, steps: int, peak_rate: float) -> None:
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=peak_rate, betas=(0.9, 0.95), weight_decay=0.1)
    warmup = max(1, steps // 20)
    for step in range(steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = (
            peak_rate * min(1.0, (step + 1) / warmup) * (0.05 + 0.95 * cosine)
        )
        starts = torch.randint(0, len(tokens) - CONTEXT - 1, (BATCH,))
        batch = torch.stack([tokens[s : s + CONTEXT + 1] for s in starts.tolist()])
        loss = F.cross_entropy(model(batch[:, :-1]).reshape(-1, VOCAB), batch[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        if step % 100 == 99 or step == steps - 1:
            quality = perplexity(model, heldout)
            print(f"{step + 1}/{steps} loss {loss.item():.3f} ppl {quality:.2f}", flush=True)


def half_precision(model: Llama) -> dict[str, np.ndarray]:
    return {name: w.detach().numpy().astype(np.float16) for name, w in model.state_dict().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--finetune-steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    torch.manual_seed(0)

    reference = reference_text()
    heldout_text = reference[-1]
    while len(heldout_text) < HELDOUT_BYTES:
        reference.pop()
        heldout_text = reference[-1] + heldout_text
    reference.pop()
    heldout_text = heldout_text[:HELDOUT_BYTES]
    documents = reference + docstrings(1_200_000)
    (options.out / "heldout.txt").write_text(heldout_text, encoding="utf-8")

    tokenizer = train_tokenizer(documents)
    tokenizer.save(str(options.out / "tokenizer.json"))
    tokens, heldout = encode(tokenizer, documents), encode(tokenizer, [heldout_text])
    print(f"{len(tokens)} training tokens, {len(heldout)} held out")

    model = Llama()
    fit(model, tokens, heldout, options.steps, 3e-3)
    np.savez(options.out / "base.npz", **half_precision(model))

    last = f"layers.{LAYERS - 1}."
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(last)
    licences = encode(tokenizer, licence_text())
    fit(
        model,
        licences[: -len(licences) // 10],
        licences[-len(licences) // 10 :],
        options.finetune_steps,
        1e-3,
    )
    np.savez(
        options.out / "finetune.npz",
        **{name: value for name, value in half_precision(model).items() if name.startswith(last)},
    )


if __name__ == "__main__":
    main()
