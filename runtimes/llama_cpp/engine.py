"""Text generation by llama.cpp."""

from collections.abc import Generator, Sequence

import numpy as np

from artifact.manifest import Task
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
from runtimes.llama_cpp.adapters import check_adapter
from runtimes.llama_cpp.embedding import POOLINGS, LlamaCppEmbeddingEngine
from runtimes.llama_cpp.grammar import constraint_of
from runtimes.llama_cpp.inspect import GgufInspector
from runtimes.llama_cpp.limits import BATCH_TOKENS, DEFAULT_PARALLEL, MAX_OUTPUTS
from runtimes.llama_cpp.native import Model
from runtimes.llama_cpp.scheduler import Scheduler
from runtimes.predictions import Predictions
from runtimes.processor.threads import compute_threads
from runtimes.text.chat import render_chat
from runtimes.text.control_tokens import ChatPrompt, ControlTokens
from runtimes.text.embedding import DEFAULT_PARALLEL as ENCODER_PARALLEL
from runtimes.text.generation import (
    TextGeneration,
    check_prompt,
    check_scorable,
    check_text,
    room_for,
)
from runtimes.text.sampling import Sampler
from runtimes.text.sampling_bounds import check_sampling, refuse_adapter
from runtimes.text.scoring import score_of


class LlamaCppEngine:
    """A GGUF language model with one context that several generations share."""

    def __init__(self, model: Model, parallel: int = 1) -> None:
        self._model = model
        self._parallel = parallel
        self._scheduler = Scheduler(model, parallel)
        self._generations: list[TextGeneration] = []
        self._control = ControlTokens(model.control_tokens())

    @property
    def context_length(self) -> int:
        return self._model.context_length

    @property
    def parallel(self) -> int:
        return self._parallel

    def generate(self, prompt: str, sampling: Sampling) -> Generation:
        self._require_open()
        model = self._model
        check_sampling(sampling)
        refuse_adapter(sampling.adapter, model.adapters)
        tokens = self._tokenize(prompt)
        check_prompt(tokens, model.context_length)
        room = room_for(tokens, sampling, model.context_length)
        sampler = Sampler(sampling, constraint_of(model, sampling))
        self._generations = [each for each in self._generations if not each.over]
        if len(self._generations) == self._parallel:
            self._generations.pop(0).close()
        generation = TextGeneration(
            self._scheduler.open(tokens, room, sampler, sampling.adapter, sampling.cache_salt),
            model,
            sampling,
            prompt_tokens=len(tokens),
            room=room,
        )
        self._generations.append(generation)
        return generation

    def render_chat(self, messages: Sequence[dict[str, str]]) -> ChatPrompt:
        model = self._model
        return render_chat(
            messages,
            model.chat_template(),
            begin=model.begin_text(),
            end=self._text_of(model.end_token()),
            control=self._control,
        )

    def score(self, text: str) -> Steps[Score]:
        while self._scheduler.lent:
            # Another score uses the context.
            yield
        return (yield from score_of(self.predictions(text)))

    def predictions(self, text: str) -> Generator[Predictions, None, None]:
        """Yield the model's prediction of each token of a text but the first."""
        self._require_open()
        tokens = np.array(self._tokenize(text), dtype=np.int64)
        check_scorable(tokens)
        with self._scheduler.alone():
            for begin in range(0, len(tokens) - 1, self.context_length):
                self._model.forget()
                end = min(begin + self.context_length, len(tokens) - 1)
                for start in range(begin, end, MAX_OUTPUTS):
                    self._require_open()
                    stop = min(start + MAX_OUTPUTS, end)
                    logits = self._model.decode(tokens[start:stop].tolist(), all_logits=True)
                    done = stop / (len(tokens) - 1)
                    yield Predictions(tokens[start + 1 : stop + 1], logits, done)

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
        return self._model.buffer_bytes

    def close(self) -> None:
        for generation in self._generations:
            generation.close()
        self._model.close()

    def _tokenize(self, prompt: str) -> list[int]:
        check_text(prompt)
        if isinstance(prompt, ChatPrompt):
            return self._tokenize_chat(prompt)
        tokens = self._model.tokenize(prompt)
        # A chat template that writes the begin token must not get a second one.
        begin = self._model.begin_token()
        if begin is not None and tokens[:2] == [begin, begin]:
            return tokens[1:]
        return tokens

    def _tokenize_chat(self, prompt: ChatPrompt) -> list[int]:
        """Tokenize a conversation: a begin token if the model adds it, and never an end token."""
        model = self._model
        if prompt.marks:
            tokens = self._control.tokenize(
                prompt, lambda text: model.tokenize_part(text, control=False)
            )
        else:
            tokens = model.tokenize_part(prompt, control=True)
        begin = model.begin_token()
        return tokens if begin is None or tokens[:1] == [begin] else [begin, *tokens]

    def _text_of(self, token: int | None) -> str:
        return "" if token is None else self._model.piece(token, special=True).decode()

    def _require_open(self) -> None:
        if self._model.closed:
            raise UnsupportedModelError("the model is closed", advice="Load it again.")


def load(spec: LoadSpec) -> LlamaCppEngine | LlamaCppEmbeddingEngine:
    """Load a GGUF file after inspecting it; raises LoadError or UnsafeFileError."""
    if spec.task not in {Task.TEXT_GENERATION, Task.EMBEDDING} or len(spec.files) != 1:
        raise LoadError(
            f"llama.cpp loads one file for {Task.TEXT_GENERATION} or {Task.EMBEDDING}, not "
            f"{len(spec.files)} for {spec.task}",
            advice="Build the variant again with `flotilla model build`.",
        )
    (path,) = spec.files.values()
    base = GgufInspector().inspect(path)
    for name, adapter in spec.adapters.items():
        try:
            check_adapter(GgufInspector().inspect(adapter), base)
        except UnsupportedModelError as error:
            raise LoadError(f"adapter {name!r}: {error}", advice=error.advice) from error
    threads = spec.threads or compute_threads()
    if spec.task is Task.EMBEDDING:
        pooling = base.metadata.get(f"{base.architecture}.pooling_type")
        if pooling not in POOLINGS:
            raise LoadError(
                f"{base.architecture}.pooling_type is {pooling}; 1 (mean), 2 (first token) or 3 "
                "(last token) is expected",
                advice="Convert it with llama.cpp's convert_hf_to_gguf.py, or deploy an encoder.",
            )
        context = spec.context_length or min(base.context_length, BATCH_TOKENS)
        return LlamaCppEmbeddingEngine(
            Model(path, context, threads, embeds=True), spec.parallel or ENCODER_PARALLEL
        )
    parallel = min(spec.parallel or DEFAULT_PARALLEL, MAX_OUTPUTS)
    model = Model(path, spec.context_length, threads, sequences=parallel, adapters=spec.adapters)
    return LlamaCppEngine(model, parallel)
