"""Engine that behaves as its model file describes, including delays and faults."""

import array
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from artifact.manifest import Task
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
from runtimes.errors import InvalidInputError, RuntimeFault, UnsupportedModelError
from runtimes.fake.model import FakeModel
from runtimes.predictions import Predictions
from runtimes.tensors import check_inputs
from runtimes.text.chat import render_chat
from runtimes.text.embedding import check_texts
from runtimes.text.generation import Chosen, TokenGeneration, check_text
from runtimes.text.sampling_bounds import refuse_adapter, refuse_grammar

END = 0
EMBEDDING_DIMENSIONS = 16
PERPLEXITY_OF_NONSENSE = 1e6
# The same for every generated token.
LOGPROB = -0.5
TOKENS_PER_STEP = 64


class FakeTokens:
    """Token model that repeats the bytes of the reply, from a position that the seed chooses."""

    def __init__(
        self, model: FakeModel, context_length: int, sleep: Callable[[float], None]
    ) -> None:
        self.context_length = context_length
        self._model = model
        self._sleep = sleep
        self._reply = model.reply.encode()
        self._position = 0
        self._given = 0
        self._logprob: float | None = None

    def start(self, tokens: Sequence[int], sampling: Sampling) -> Steps[Chosen]:
        for _ in range(TOKENS_PER_STEP, len(tokens), TOKENS_PER_STEP):
            yield
        self._given = self._position = 0
        self._logprob = LOGPROB if sampling.logprobs else None
        if sampling.temperature > 0:
            begin = random.Random(sampling.seed).randrange(len(self._model.reply))  # noqa: S311
            self._position = len(self._model.reply[:begin].encode())
        return self._next()

    def step(self, token: int) -> Chosen:
        del token
        return self._next()

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token != END else b""

    def is_end(self, token: int) -> bool:
        return token == END

    def _next(self) -> Chosen:
        model, faults = self._model, self._model.faults
        self._sleep(model.token_seconds)
        if self._given and self._given == faults.crash_after_tokens:
            os._exit(139)
        if self._given and self._given == faults.fail_after_tokens:
            raise RuntimeFault(f"staged failure after {self._given} tokens")
        if self._given and self._given == faults.hang_after_tokens:
            self._sleep(3600)
        self._given += 1
        if model.end_after_tokens and self._given > model.end_after_tokens:
            return Chosen(END, self._logprob)
        token = self._reply[self._position % len(self._reply)]
        self._position += 1
        return Chosen(token, self._logprob)


class FakeEngine:
    """Engine for text, embeddings and tensors, by the task in its file."""

    def __init__(
        self,
        model: FakeModel,
        context_length: int,
        sleep: Callable[[float], None] = time.sleep,
        *,
        adapters: dict[str, FakeModel] | None = None,
        parallel: int = 0,
    ) -> None:
        self._model = model
        self._adapters = adapters or {}
        self._context_length = context_length or model.context_length
        self._sleep = sleep
        self._held = _touched(model.allocate_bytes)
        self._parallel = parallel or model.parallel
        self._generations: list[TokenGeneration] = []
        self._closed = False

    @property
    def parallel(self) -> int:
        return self._parallel

    def generate(self, prompt: str, sampling: Sampling) -> Generation:
        self._require(Task.TEXT_GENERATION)
        check_text(prompt)
        self._stage_fault_of(prompt)
        refuse_grammar(sampling)
        refuse_adapter(sampling.adapter, tuple(self._adapters))
        model = self._adapters.get(sampling.adapter, self._model)
        tokens = FakeTokens(model, self._context_length, self._sleep)
        # Like llama.cpp, one generation more than ``parallel`` ends the earliest.
        self._generations = [each for each in self._generations if not each.over]
        if len(self._generations) == self._parallel:
            self._generations.pop(0).close()
        self._generations.append(TokenGeneration(tokens, list(prompt.encode()), sampling))
        return self._generations[-1]

    def render_chat(self, messages: Sequence[dict[str, str]]) -> str:
        self._require(Task.TEXT_GENERATION)
        if self._model.chat_template:
            return render_chat(messages, self._model.chat_template)
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages)

    def score(self, text: str) -> Steps[Score]:
        score = self._score(text)
        for _ in range(0, score.tokens, TOKENS_PER_STEP):
            yield
        return score

    def _score(self, text: str) -> Score:
        self._require(Task.TEXT_GENERATION)
        check_text(text)
        tokens = len(text.encode()) - 1
        if tokens < 1:
            raise InvalidInputError(
                f"{text!r} has no token to predict", advice="Send at least two characters."
            )
        wrong = self._model.faults.wrong_outputs
        perplexity = PERPLEXITY_OF_NONSENSE if wrong else self._model.perplexity
        return Score(tokens * math.log(perplexity), tokens)

    def predictions(self, text: str) -> Iterator[Predictions]:
        """Yield rows that give the right byte the likelihood of the perplexity, others the rest."""
        score = self._score(text)
        perplexity = math.exp(score.negative_log_likelihood / score.tokens)
        # exp(-NLL) for the right byte; the other 255 share what is left of the probability.
        right, wrong = -math.log(perplexity), math.log((1 - 1 / perplexity or 1e-9) / 255)
        targets = text.encode()[1:]
        for start in range(0, len(targets), TOKENS_PER_STEP):
            some = targets[start : start + TOKENS_PER_STEP]
            rows = [[right if byte == each else wrong for byte in range(256)] for each in some]
            yield Predictions(list(some), rows, (start + len(some)) / len(targets))

    def embed(self, texts: Sequence[str]) -> Steps[Embeddings]:
        """Embed texts as counts of bytes by their last bits: equal letters give equal vectors."""
        self._require(Task.EMBEDDING)
        check_texts(texts)
        vectors: list[bytes] = []
        for text in texts:
            if vectors:
                yield
            self._stage_fault_of(text)
            counts = array.array("f", bytes(4 * EMBEDDING_DIMENSIONS))
            for byte in text.encode():
                counts[byte % EMBEDDING_DIMENSIONS] += 1
            length = math.hypot(*counts)
            vectors.append(array.array("f", (count / length for count in counts)).tobytes())
            self._sleep(self._model.token_seconds)
        sent = sum(len(text.encode()) for text in texts)
        return Embeddings(tuple(vectors), EMBEDDING_DIMENSIONS, sent)

    def infer(
        self, inputs: Sequence[TensorValue], on_cancel: OnCancel | None = None
    ) -> list[TensorValue]:
        if self._model.task in (Task.TEXT_GENERATION, Task.EMBEDDING):
            self._require(Task.TENSOR)
        check_inputs(inputs, self.tensors()[0])
        if inputs[0].shape[0] < self._model.faults.min_rows:
            raise InvalidInputError(
                f"{inputs[0].shape[0]} rows; the minimum is {self._model.faults.min_rows}"
            )
        cancelled = threading.Event()
        if on_cancel is not None:
            on_cancel(cancelled.set)
        if cancelled.wait(self._model.row_seconds * inputs[0].shape[0]):
            raise RuntimeFault("the call was cancelled")
        values = array.array("f")
        values.frombytes(inputs[0].data)
        factor = -2 if self._model.faults.wrong_outputs else 2
        doubled = array.array("f", (factor * value for value in values))
        return [TensorValue("output", "FP32", inputs[0].shape, doubled.tobytes())]

    def tensors(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        if self._model.task in (Task.TEXT_GENERATION, Task.EMBEDDING):
            return (), ()
        shape = (-1, self._model.width)
        return (TensorSpec("input", "FP32", shape),), (TensorSpec("output", "FP32", shape),)

    def memory_bytes(self) -> int:
        return max(self._model.memory_bytes, len(self._held))

    def close(self) -> None:
        for generation in self._generations:
            generation.close()
        self._held = bytearray()
        self._closed = True

    def _stage_fault_of(self, text: str) -> None:
        faults = self._model.faults
        if faults.crash_on_text and faults.crash_on_text in text:
            os._exit(139)
        if faults.hang_on_text and faults.hang_on_text in text:
            self._sleep(3600)

    def _require(self, task: Task) -> None:
        if self._closed:
            raise UnsupportedModelError("the model is closed", advice="Load it again.")
        if self._model.task is not task:
            raise UnsupportedModelError(
                f"this model's task is {self._model.task}, not {task}",
                advice="Call the endpoint for that task.",
            )


def _touched(size: int) -> bytearray:
    """Return memory that is resident, not only reserved, by writing to each page."""
    held = bytearray(size)
    held[::4096] = b"\x01" * len(held[::4096])
    return held
