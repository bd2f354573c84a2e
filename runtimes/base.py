"""What a runtime is: the protocols that onnx, llama_cpp and fake implement.

A runtime is found by entry point (``flotilla.runtimes``), so a third one is a new package and no
change here. Nothing in this file needs numpy: the agent's daemon imports it.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from artifact.manifest import Task

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Work in bounded shares: each ``next`` does one, and what it returns in the end is the answer.

Closing it gives up what is left. Whoever serves several of them takes them in turn.
"""

OnCancel = Callable[[Callable[[], None]], None]
"""Is told how to end a call early, once nobody wants its answer any more.

What it is told may be called from another thread, at once or late, and several times.
"""

Progress = Callable[[str, float], None]
"""Called with what is being done and how much of it is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A weight in a file: its stored type, its shape, and where its bytes lie.

    ``file`` names the file beside the inspected one that holds the bytes; empty: this one does.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    size: int
    file: str = ""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a bounded reading of a model file found, without loading it."""

    format: str
    task: Task
    architecture: str
    parameters: int
    quantization: str
    context_length: int
    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What an engine is to load. ``files`` maps manifest names to real, digest-checked paths.

    ``adapters`` maps the names that requests choose by to LoRA files; ``parallel`` is how many
    generations are wanted at once (0: as many as the engine thinks good).
    """

    files: dict[str, Path]
    task: Task
    context_length: int = 0
    threads: int = 0
    adapters: dict[str, Path] = field(default_factory=dict)
    parallel: int = 0


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters; temperature 0 is greedy. ``stop`` strings are left out of the text.

    The penalties look at what was generated, not at the prompt. ``grammar`` (GBNF) or
    ``json_schema`` (JSON text), one at most, is what the text has to fit; ``adapter`` names one of
    LoadSpec's, empty: the model as it is. Pieces have a ``logprob`` only when ``logprobs`` asks.
    """

    max_tokens: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    grammar: str = ""
    json_schema: str = ""
    adapter: str = ""
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """A bit of generated text. The last piece has a ``finish_reason``: stop or length.

    ``logprob`` is the natural logarithm of the token's probability under the model, before
    temperature, penalties and grammar.
    """

    text: str
    token: int | None
    finish_reason: str | None = None
    logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What one generation cost; busy seconds of prompt processing and of generation.

    The first token falls out of prompt processing, so ``prefill_seconds`` is the engine's share of
    TTFT, and ``decode_seconds`` covers ``generated_tokens - 1`` steps. A step counts whole
    for each generation that it served or that waited for its turn. ``cached_prompt_tokens`` of the
    prompt were known from before.
    """

    prompt_tokens: int
    generated_tokens: int
    prefill_seconds: float
    decode_seconds: float
    cached_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """Negative log-likelihood (nats) of a text, summed over ``tokens`` predicted tokens."""

    negative_log_likelihood: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Embeddings:
    """A vector of length 1 per text, as ``dimensions`` little-endian float32 values."""

    vectors: tuple[bytes, ...]
    dimensions: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class TensorValue:
    """A tensor in flight: Open Inference Protocol datatype, shape, row-major bytes.

    An engine's inputs may be views of memory that is theirs for this call alone.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output that a model declares; -1 marks a free dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Generation(Protocol):
    """An iterator of pieces; ``usage`` is complete once it is exhausted or closed."""

    @property
    def usage(self) -> Usage: ...

    def __iter__(self) -> Iterator[Piece]: ...

    def __next__(self) -> Piece: ...

    def poll(self) -> Piece | None:
        """The next piece, or None when a bounded share of work did not bring it yet.

        Raises StopIteration after the last. Whoever serves several generations polls them in turn.
        """

    def close(self) -> None:
        """Stop generating; safe to call at any time."""


class Engine(Protocol):
    """A loaded model. One call at a time; the worker process around it keeps the queue.

    Up to ``parallel`` generations and other steps may be under way at once; generations may be read
    from different threads. Methods that do not fit the model's task raise UnsupportedModelError,
    bad arguments raise InvalidInputError, both perhaps with the first step.
    """

    @property
    def parallel(self) -> int:
        """How many may be under way at once; one more generation may end an earlier one."""

    def generate(self, prompt: str, sampling: Sampling) -> Generation: ...

    def render_chat(self, messages: Sequence[dict[str, str]]) -> str:
        """The prompt of a conversation (role, content), by the model's own template."""

    def score(self, text: str) -> Steps[Score]:
        """The likelihood of a text. Generations may stand still until it is over."""

    def embed(self, texts: Sequence[str]) -> Steps[Embeddings]: ...

    def infer(
        self, inputs: Sequence[TensorValue], on_cancel: OnCancel | None = None
    ) -> list[TensorValue]:
        """One call; ended early it raises."""

    def tensors(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Declared inputs and outputs; empty for text generation."""

    def memory_bytes(self) -> int:
        """Weights, KV cache and compute buffers as loaded, as well as the runtime can tell."""

    def close(self) -> None: ...


class Inspector(Protocol):
    """Bounded, safe reading of a model file."""

    def inspect(self, path: Path) -> Inspection:
        """Raises UnsafeFileError; reads the header, never the weights."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a variant is made of its source; a runtime refuses the options that it does not know.

    ``calibration`` is what the model usually reads, a text or an .npz of inputs, from which a
    scheme learns what matters. ``prune_layers`` leaves whole layers out, ``sparsity`` sets that
    fraction of each matrix to zero, its smallest values. ``block_size`` values share a scale.
    """

    name: str
    calibration: Path | None = None
    prune_layers: tuple[int, ...] = ()
    sparsity: float = 0.0
    block_size: int = 0


class Quantizer(Protocol):
    """Makes variants from a source file."""

    @property
    def schemes(self) -> tuple[str, ...]:
        """Names of schemes, from about the largest variants to the smallest."""

    def calibrates(self, scheme: str) -> bool:
        """Whether a scheme of this name can use calibration data."""

    def quantize(self, source: Path, scheme: Scheme, destination: Path, progress: Progress) -> None:
        """Writes ``destination`` whole or not at all; raises QuantizeError."""

    def predict_size(self, source: Path, scheme: Scheme) -> int:
        """About how many bytes that would have; 0: only making it tells. Raises QuantizeError."""


class Runtime(Protocol):
    """What an entry point gives. Attributes must be cheap: the engine is imported on ``load``."""

    name: str
    # File ending (without the dot) of the main file, for instance gguf.
    format: str
    # Names of the small files beside the main one that the engine reads too.
    side_files: tuple[str, ...]

    def version(self) -> str | None:
        """The installed engine's version, or None when this box cannot load it."""

    def inspector(self) -> Inspector: ...

    def quantizer(self) -> Quantizer: ...

    def prepare(self) -> None:
        """Imports the engine's code, so that what comes after is a model's own memory."""

    def load(self, spec: LoadSpec) -> Engine:
        """Raises LoadError, or UnsafeFileError for files that the engine's code must not see."""

    def check_adapter(self, adapter: Inspection, base: Inspection) -> None:
        """Raises UnsupportedModelError unless the adapter fits the base."""

    def estimate_memory(self, inspection: Inspection, size_bytes: int, context_length: int) -> int:
        """Predicted peak bytes: weights, KV cache at the context length, compute buffers."""

    def decode_bytes(self, inspection: Inspection) -> dict[str, int]:
        """Bytes of weights that one generated token reads, by type; empty: it cannot be told."""
