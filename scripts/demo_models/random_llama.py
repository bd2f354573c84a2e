#!/usr/bin/env python3
"""Write a Llama GGUF with random weights, of any size, for benchmarks.

    .venv/bin/python scripts/demo_models/random_llama.py --parameters 350M out.gguf

One tensor is in memory at a time. The vocabulary is GPT-2-like: every byte, then random pieces, so
that any text can be tokenized. The same arguments give the same bytes.
"""

import argparse
import re
import sys
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from demo_models.gguf_export import write_gguf
from demo_models.weights import Shape, Vocabulary, vocabulary

HEAD_DIM = 64
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}


def shape_of(parameters: int, vocab: int, context: int) -> Shape:
    """Return the largest Llama within a parameter count whose width k-quants accept."""
    best = None
    for dim, layers in product(range(256, 8193, 256), range(2, 81)):
        # Ratio of width to depth as in published models.
        if not 16 <= dim / layers <= 192:
            continue
        heads = dim // HEAD_DIM
        shape = Shape(
            dim=dim,
            layers=layers,
            heads=heads,
            kv_heads=heads // 4,
            hidden=dim * 11 // 4 // 256 * 256,
            vocab=vocab,
            context=context,
        )
        if shape.parameters() <= parameters and (
            best is None or shape.parameters() > best.parameters()
        ):
            best = shape
    if best is None:
        raise SystemExit(f"no Llama with a vocabulary of {vocab} has only {parameters} parameters")
    return best


def padded_vocabulary(size: int) -> Vocabulary:
    """Return the demo's vocabulary, extended with pieces that no merge produces."""
    known = vocabulary()
    if size < len(known.tokens):
        raise SystemExit(f"the vocabulary has at least {len(known.tokens)} tokens")
    extra = [f"<|unused{number}|>" for number in range(size - len(known.tokens))]
    return Vocabulary(known.tokens + extra, known.merges)


def parse_count(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGB]?)", text.upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count such as 350M")
    return int(float(match[1]) * UNITS[match[2]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parameters", type=parse_count, default=parse_count("50M"))
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    shape = shape_of(options.parameters, options.vocab, options.context)
    tensors = shape.tensors()
    random = np.random.default_rng(options.seed)

    def read(name: str) -> NDArray[np.float16]:
        dims = tensors[name]
        if len(dims) == 1:
            return np.ones(dims, dtype=np.float16)
        values = random.standard_normal(dims, dtype=np.float32)
        values *= 0.02
        return values.astype(np.float16)

    write_gguf(options.out, "random-llama", shape, padded_vocabulary(options.vocab), read)
    print(f"{options.out}: {shape.parameters():,} parameters, {shape}")


if __name__ == "__main__":
    main()
