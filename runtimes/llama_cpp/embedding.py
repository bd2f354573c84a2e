"""Text embeddings by llama.cpp, for encoders whose GGUF file names their pooling.

Every vector has length 1, as with OpenAI, so that a dot product is the cosine.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from runtimes.base import (
    Embeddings,
    Generation,
    OnCancel,
    Sampling,
    Score,
    Steps,
    TensorSpec,
    TensorValue,
)
from runtimes.errors import UnsupportedModelError
from runtimes.llama_cpp.native import Model
from runtimes.text.embedding import check_length, check_number, check_texts

# llama.cpp's numbers of mean, first token and last token. Its other poolings return vectors of
# another width, so reading the model's width would exceed them.
POOLINGS: Final = frozenset({"1", "2", "3"})
# Length below which a vector counts as zero.
MIN_LENGTH: Final = float(np.finfo(np.float32).tiny)


class LlamaCppEmbeddingEngine:
    """An encoder that reads one text per pass."""

    def __init__(self, model: Model, parallel: int = 1) -> None:
        self._model = model
        self.parallel = parallel

    def embed(self, texts: Sequence[str]) -> Steps[Embeddings]:
        check_texts(texts)
        tokens: list[list[int]] = []
        for text in texts:
            if tokens:
                yield
            tokens.append(self._encode(text))
        vectors: list[bytes] = []
        for each in tokens:
            if vectors:
                yield
            vectors.append(self._unit(each))
        return Embeddings(
            vectors=tuple(vectors),
            dimensions=len(vectors[0]) // 4,
            prompt_tokens=sum(map(len, tokens)),
        )

    def _encode(self, text: str) -> list[int]:
        self._require_open()
        tokens = self._model.tokenize(text)
        check_length(len(tokens), self._model.context_length)
        return tokens

    def _unit(self, tokens: Sequence[int]) -> bytes:
        self._require_open()
        vector = self._model.embed(tokens)
        length = float(np.linalg.norm(vector))
        check_number(length)
        return (vector / max(length, MIN_LENGTH)).astype("<f4").tobytes()

    def _require_open(self) -> None:
        if self._model.closed:
            raise UnsupportedModelError("the model is closed", advice="Load it again.")

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
        return self._model.buffer_bytes

    def close(self) -> None:
        self._model.close()


def _only_embeds(request: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"this model computes embeddings; the request has {request}",
        advice="Call it at /v1/embeddings.",
    )
