"""Text embeddings by ONNX Runtime, for encoders that sentence-transformers and Optimum export.

A graph that pools has the output ``sentence_embedding``. Otherwise the rows of
``last_hidden_state`` (or ``token_embeddings``) that belong to real tokens are pooled here. Every
vector has length 1, like OpenAI's, so that a dot product is the cosine.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifact.manifest import Task
from runtimes.arrays import DTYPES
from runtimes.base import (
    Embeddings,
    Generation,
    LoadSpec,
    OnCancel,
    Sampling,
    Score,
    Steps,
    TensorSpec,
    TensorValue,
)
from runtimes.errors import LoadError, UnsupportedModelError
from runtimes.onnx.encoder import POOLED, TOKEN_OUTPUTS, is_encoder, width_of
from runtimes.onnx.memory import DEFAULT_CONTEXT, PASS_TOKENS, pass_bytes
from runtimes.onnx.sentence_transformers import pool, read_settings
from runtimes.onnx.session import datatype, open_session
from runtimes.onnx.side_files import read_heads
from runtimes.onnx.tokens import TextTokenizer
from runtimes.text.embedding import DEFAULT_PARALLEL, check_length, check_number, check_texts
from runtimes.text.generation import choose_context

Floats = NDArray[np.float32]


class OnnxEmbeddingEngine:
    """An encoder with its tokenizer."""

    def __init__(self, spec: LoadSpec) -> None:
        self._tokenizer = TextTokenizer(spec.files)
        self.context_length = choose_context(
            spec.context_length, self._tokenizer.context_length, DEFAULT_CONTEXT
        )
        self.parallel = spec.parallel or DEFAULT_PARALLEL
        self._session, loaded = open_session(spec)
        self._inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = [value.name for value in self._session.get_outputs()]
        if not is_encoder(self._inputs, outputs):
            raise LoadError(
                f"the encoder has the inputs {', '.join(self._inputs)[:300]} and the outputs "
                f"{', '.join(outputs)[:300]}",
                advice="Export it with `optimum-cli export onnx --task feature-extraction`.",
            )
        self._output = next(name for name in (POOLED, *TOKEN_OUTPUTS) if name in outputs)
        self._settings = read_settings(spec.files, pooled=self._output == POOLED)
        width = width_of((value.name, value.shape) for value in self._session.get_outputs())
        self._memory_bytes = loaded.with_run(
            pass_bytes(read_heads(spec.files), width, self.context_length)
        )

    def embed(self, texts: Sequence[str]) -> Steps[Embeddings]:
        check_texts(texts)
        tokens: list[list[int]] = []
        for text in texts:
            if tokens:
                yield
            tokens.append(self._encode(text))
        rows: dict[int, Floats] = {}
        for batch in _batches(tokens):
            if rows:
                yield
            rows |= zip(batch, self._run([tokens[at] for at in batch]), strict=True)
        vectors = [rows[at] for at in range(len(texts))]
        return Embeddings(
            vectors=tuple(vector.astype("<f4").tobytes() for vector in vectors),
            dimensions=len(vectors[0]),
            prompt_tokens=sum(map(len, tokens)),
        )

    def _encode(self, text: str) -> list[int]:
        text = self._settings.prompt + text
        tokens = self._tokenizer.encode(text.lower() if self._settings.lower_case else text)
        check_length(len(tokens), self.context_length)
        return tokens

    def _run(self, batch: list[list[int]]) -> Floats:
        """Return unit vectors, a row for each text."""
        if self._session is None:
            raise UnsupportedModelError("the model is closed", advice="Load it again.")
        width = max(map(len, batch))
        mask = np.zeros((len(batch), width), dtype=np.int64)
        ids = np.zeros_like(mask)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        feed = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
            "position_ids": np.broadcast_to(np.arange(width, dtype=np.int64), mask.shape),
        }
        # Some exports take int32, and not all take token types and positions.
        wanted = {name: _typed(feed[name], value) for name, value in self._inputs.items()}
        (output,) = self._session.run([self._output], wanted)
        values: Floats = output.astype(np.float32, copy=False)
        if self._output != POOLED:
            values = pool(values, mask, self._settings.modes)
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        check_number(float(lengths.max()))
        # A zero vector stays zero instead of becoming NaN.
        unit: Floats = values / np.maximum(lengths, np.finfo(np.float32).tiny)
        return unit

    def generate(self, prompt: str, sampling: Sampling) -> Generation:
        raise _only_embeds(f"{len(prompt)} characters and {sampling.max_tokens} tokens")

    def render_chat(self, messages: Sequence[dict[str, str]]) -> str:
        raise _only_embeds(f"{len(messages)} messages")

    def score(self, text: str) -> Steps[Score]:
        raise _only_embeds(f"{len(text)} characters")

    def infer(
        self, inputs: Sequence[TensorValue], on_cancel: OnCancel | None = None
    ) -> list[TensorValue]:
        del on_cancel
        raise _only_embeds(f"{len(inputs)} tensors")

    def tensors(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        return (), ()

    def memory_bytes(self) -> int:
        """Return the bytes as loaded plus those of one full pass."""
        return self._memory_bytes

    def close(self) -> None:
        self._session = None


def _batches(tokens: list[list[int]]) -> Iterator[list[int]]:
    """Yield batches of positions, by length so that little is padding; each batch fits a pass."""
    batch: list[int] = []
    # Shortest first: the next text is the batch's longest, to which all others are padded.
    for at in sorted(range(len(tokens)), key=lambda at: len(tokens[at])):
        if batch and len(tokens[at]) * (len(batch) + 1) > PASS_TOKENS:
            yield batch
            batch = []
        batch.append(at)
    yield batch


def _typed(array: NDArray[np.int64], value: Any) -> NDArray[Any]:
    return array.astype(DTYPES[datatype(value.type)], copy=False)


def _only_embeds(sent: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"this model's task is {Task.EMBEDDING}; the request has {sent}",
        advice="Call the embeddings endpoint.",
    )
