"""Text generation by ONNX Runtime, for decoders in Optimum's layout.

Keys and values stay in ONNX Runtime's own memory between steps: each step's ``present`` tensors are
bound as the next step's ``past_key_values``.
"""

from collections.abc import Generator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnxruntime import OrtValue

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
from runtimes.errors import LoadError, ModelFaultError, UnsupportedModelError
from runtimes.onnx.inspect import PAST
from runtimes.onnx.memory import BATCH_TOKENS, DEFAULT_CONTEXT, generation_bytes
from runtimes.onnx.session import datatype, open_session
from runtimes.onnx.side_files import read_heads
from runtimes.onnx.tokens import TextTokenizer
from runtimes.predictions import Predictions
from runtimes.text.chat import render_chat
from runtimes.text.control_tokens import ChatPrompt
from runtimes.text.generation import (
    Chosen,
    TokenGeneration,
    check_scorable,
    check_text,
    choose_context,
)
from runtimes.text.sampling import Sampler
from runtimes.text.sampling_bounds import refuse_adapter, refuse_grammar
from runtimes.text.scoring import score_of

# Input of Optimum's merged decoders: False for the first pass, which has no cache to read.
CACHE_BRANCH: Final = "use_cache_branch"


class OnnxTextEngine:
    """A decoder with its tokenizer and one conversation's keys and values."""

    def __init__(self, spec: LoadSpec) -> None:
        self._tokenizer = TextTokenizer(spec.files)
        self.context_length = choose_context(
            spec.context_length, self._tokenizer.context_length, DEFAULT_CONTEXT
        )
        session, loaded = open_session(spec)
        self._decoder = Decoder(session)
        self._memory_bytes = loaded.with_run(
            generation_bytes(
                read_heads(spec.files),
                self._decoder.cache_values,
                self._decoder.vocabulary,
                self.context_length,
            )
        )
        self._sampler = Sampler(Sampling())
        self._generation: TokenGeneration | None = None
        self._closed = False

    @property
    def parallel(self) -> int:
        return 1

    def generate(self, prompt: str, sampling: Sampling) -> Generation:
        refuse_grammar(sampling)
        refuse_adapter(sampling.adapter, ())
        self._stop_generating()
        self._generation = TokenGeneration(self, self._encode(prompt), sampling)
        return self._generation

    def render_chat(self, messages: Sequence[dict[str, str]]) -> ChatPrompt:
        texts = self._tokenizer.texts
        return render_chat(
            messages,
            self._tokenizer.chat_template,
            begin=texts.begin,
            end=texts.end,
            control=self._tokenizer.control,
        )

    def score(self, text: str) -> Steps[Score]:
        return score_of(self.predictions(text))

    def predictions(self, text: str) -> Generator[Predictions, None, None]:
        """Yield the logits for each token of a text except the first (runtimes.predictions)."""
        self._stop_generating()
        tokens = np.array(self._encode(text), dtype=np.int64)
        check_scorable(tokens)
        for begin in range(0, len(tokens) - 1, self.context_length):
            # Each window of a long text starts with an empty cache, as perplexity is measured.
            self._decoder.forget()
            end = min(begin + self.context_length, len(tokens) - 1)
            for start in range(begin, end, BATCH_TOKENS):
                stop = min(start + BATCH_TOKENS, end)
                logits = self._decoder.run(tokens[start:stop])
                yield Predictions(tokens[start + 1 : stop + 1], logits, stop / (len(tokens) - 1))

    def embed(self, texts: Sequence[str]) -> Steps[Embeddings]:
        raise UnsupportedModelError(
            f"this model's task is {Task.TEXT_GENERATION}; the request has {len(texts)} texts to "
            "embed",
            advice="Deploy an encoder for them.",
        )

    def infer(
        self, inputs: Sequence[TensorValue], on_cancel: OnCancel | None = None
    ) -> list[TensorValue]:
        del on_cancel
        raise UnsupportedModelError(
            f"this model's task is {Task.TEXT_GENERATION}; the request has {len(inputs)} tensors",
            advice="Call the completions endpoint.",
        )

    def tensors(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        return (), ()

    def memory_bytes(self) -> int:
        """Return the bytes as loaded plus those that a full context still needs."""
        return self._memory_bytes

    def close(self) -> None:
        if not self._closed:
            self._stop_generating()
            self._decoder.close()
            self._closed = True

    # The methods below implement the token model that TokenGeneration drives.

    def start(self, tokens: Sequence[int], sampling: Sampling) -> Steps[Chosen]:
        self._sampler = Sampler(sampling)
        self._decoder.forget()
        prompt = np.array(tokens, dtype=np.int64)
        for start in range(0, len(prompt), BATCH_TOKENS):
            # A pass at a time, so that other requests get their turn during a long prompt.
            if start:
                yield
            logits = self._decoder.run(prompt[start : start + BATCH_TOKENS])
        return self._sampler.choose(logits[-1])

    def step(self, token: int) -> Chosen:
        return self._sampler.choose(self._decoder.run(np.array([token], dtype=np.int64))[-1])

    def piece(self, token: int) -> bytes:
        return self._tokenizer.piece(token)

    def is_end(self, token: int) -> bool:
        return token in self._tokenizer.end_tokens

    def _encode(self, text: str) -> list[int]:
        check_text(text)
        if isinstance(text, ChatPrompt):
            return self._tokenizer.encode_chat(text)
        return self._tokenizer.encode(text)

    def _stop_generating(self) -> None:
        if self._closed:
            raise UnsupportedModelError("the model is closed", advice="Load it again.")
        if self._generation is not None:
            self._generation.close()


class Decoder:
    """A session with its cache of keys and values: tokens in, logits out."""

    def __init__(self, session: Any) -> None:
        self._session = session
        pasts = [value for value in session.get_inputs() if value.name.startswith(PAST)]
        self._past = {value.name: _empty(value) for value in pasts}
        self._empty_past = dict(self._past)
        self._inputs = {value.name for value in session.get_inputs()}
        self._presents = [_present_of(name) for name in self._past]
        self._length = 0
        known = {"input_ids", "attention_mask", "position_ids", CACHE_BRANCH, *self._past}
        outputs = {value.name: value.shape for value in session.get_outputs()}
        unknown = sorted(self._inputs - known) + sorted({"logits", *self._presents} - set(outputs))
        if unknown or not self._past:
            raise LoadError(
                f"the decoder's inputs and outputs are not Optimum's: {', '.join(unknown)[:500]}",
                advice="Export it with `optimum-cli export onnx --task text-generation-with-past`.",
            )
        # 0: the graph declares a free dimension.
        columns = outputs["logits"][-1] if outputs["logits"] else 0
        self.vocabulary = columns if isinstance(columns, int) else 0
        # Elements of keys and values per token.
        self.cache_values = sum(
            value.shape()[1] * value.shape()[3] for value in self._empty_past.values()
        )

    def forget(self) -> None:
        """Empty the cache."""
        self._past = dict(self._empty_past)
        self._length = 0

    def run(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append tokens to the cached ones; return logits, a row for each."""
        if self.vocabulary and (highest := int(tokens.max())) >= self.vocabulary:
            raise ModelFaultError(
                f"the tokenizer produced token {highest}; the model's vocabulary has "
                f"{self.vocabulary}",
                advice="Deploy the tokenizer.json that the model was exported with.",
            )
        total = self._length + len(tokens)
        feed = {
            "input_ids": tokens[None],
            "attention_mask": np.ones((1, total), dtype=np.int64),
            "position_ids": np.arange(self._length, total, dtype=np.int64)[None],
            CACHE_BRANCH: np.array([self._length > 0]),
        }
        # Bound outputs stay in ONNX Runtime's memory: the cache is not copied to NumPy and back.
        binding = self._session.io_binding()
        for name in self._inputs & set(feed):
            binding.bind_cpu_input(name, feed[name])
        for name, value in self._past.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits")
        for name in self._presents:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        logits, *presents = binding.get_outputs()
        self._past = dict(zip(self._past, presents, strict=True))
        self._length = total
        rows: NDArray[np.float32] = logits.numpy()[0].astype(np.float32, copy=False)
        return rows

    def close(self) -> None:
        self._past = {}
        self._empty_past = {}
        self._session = None


def _empty(value: Any) -> OrtValue:
    """Return empty keys or values: (1, heads, 0, width)."""
    _, heads, _, width = value.shape if len(value.shape) == 4 else (0, None, 0, None)  # noqa: PLR2004
    if not isinstance(heads, int) or not isinstance(width, int):
        raise LoadError(
            f"{value.name} has the shape {value.shape}, without fixed heads and width",
            advice="Export the model again with a current Optimum.",
        )
    return OrtValue.ortvalue_from_numpy(
        np.zeros((1, heads, 0, width), dtype=DTYPES[datatype(value.type)])
    )


def _present_of(past: str) -> str:
    return f"present.{past.removeprefix(PAST)}"
