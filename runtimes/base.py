"""Protocols and records that every runtime (onnx, llama_cpp, fake) implements.

A runtime is found by entry point (``flotilla.runtimes``), so adding one changes no code here. This
module must not import NumPy, because the agent's daemon imports it.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from artifact.manifest import Task

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Work in bounded shares: each ``next`` does one share, and the generator returns the result.

Closing the generator abandons the rest. A caller with several of them advances them in turn.
"""

OnCancel = Callable[[Callable[[], None]], None]
"""Receives a function that ends the call early.

That function may be called from another thread, at any time, and more than once.
"""

Progress = Callable[[str, float], None]
"""Called with the name of the current step and the fraction of it that is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A weight in a file: stored type, shape, and the range of its bytes.

    ``file`` names the file beside the inspected one that holds the bytes; empty means the
    inspected file itself.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    size: int
    file: str = ""


@dataclass(frozen=True, slots=True)
class Inspection:
    """Facts about a model file, read within bounds and without loading it."""

    format: str
    task: Task
    architecture: str
    parameters: int
    quantization: str
    context_length: int
    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str] = field(default_factory=dict)
    # Number of nodes by operator; empty for formats without a graph.
    operators: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """Files and settings for loading an engine.

    ``files`` maps manifest names to paths whose digests were checked. ``adapters`` maps the names
    that requests use to LoRA files. ``parallel`` is the number of concurrent generations (0: the
    engine's default).
    """

    files: dict[str, Path]
    task: Task
    context_length: int = 0
    threads: int = 0
    adapters: dict[str, Path] = field(default_factory=dict)
    parallel: int = 0


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters; temperature 0 is greedy.

    The text ends before a ``stop`` string and before a token of ``stop_token_ids``. Requests reuse
    cached prompts of requests with the same ``cache_salt`` only.


    The penalties count generated tokens only, not the prompt. At most one of ``grammar`` (GBNF) and
    ``json_schema`` (JSON text) constrains the text. ``adapter`` names an adapter of the LoadSpec;
    empty selects the base model. Pieces carry a ``logprob`` only if ``logprobs`` is true.
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
    stop_token_ids: tuple[int, ...] = ()
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """A fragment of generated text. The last piece has a ``finish_reason``: stop or length.

    ``logprob`` is the natural logarithm of the token's probability under the model, before
    temperature, penalties and grammar.
    """

    text: str
    token: int | None
    finish_reason: str | None = None
    logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts and busy seconds of one generation.

    Prefill also yields the first token, so ``prefill_seconds`` is the engine's share of TTFT, and
    ``decode_seconds`` covers ``generated_tokens - 1`` steps. The full time of a step counts for
    every generation that it served or that waited for its turn. ``cached_prompt_tokens`` of the
    prompt came from the prefix cache.
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
    """One unit vector per text, as ``dimensions`` little-endian float32 values."""

    vectors: tuple[bytes, ...]
    dimensions: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class TensorValue:
    """A tensor in wire form: Open Inference Protocol datatype, shape, row-major bytes.

    The data of an engine's inputs may be views of memory that is valid only during the call.
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
        """Do one bounded share of work; return a piece if that completed one.

        Raises StopIteration after the last piece. A caller with several generations polls them in
        turn.
        """

    def close(self) -> None:
        """Stop generating; safe to call at any time."""


class Engine(Protocol):
    """A loaded model. It accepts one call at a time; the worker process owns the queue.

    Up to ``parallel`` generations and other steps may be in progress at once; generations may be
    read from different threads. Methods that do not fit the model's task raise
    UnsupportedModelError, bad arguments raise InvalidInputError; both may be raised by the first
    step instead of the call.
    """

    @property
    def parallel(self) -> int:
        """The number of generations in progress at once; one more may end the earliest."""

    def generate(self, prompt: str, sampling: Sampling) -> Generation: ...

    def render_chat(self, messages: Sequence[dict[str, str]]) -> str:
        """Render a conversation (role, content) with the model's own chat template."""

    def score(self, text: str) -> Steps[Score]:
        """Compute the likelihood of a text. Generations may pause until it is done."""

    def embed(self, texts: Sequence[str]) -> Steps[Embeddings]: ...

    def infer(
        self, inputs: Sequence[TensorValue], on_cancel: OnCancel | None = None
    ) -> list[TensorValue]:
        """Run the model once; raise RuntimeFault if the call was ended early."""

    def tensors(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the declared inputs and outputs; empty for text generation."""

    def memory_bytes(self) -> int:
        """Return the bytes of weights, KV cache and compute buffers, as the runtime counts them."""

    def close(self) -> None: ...


class Inspector(Protocol):
    """Bounded, safe reading of a model file."""

    def inspect(self, path: Path) -> Inspection:
        """Read the header, never the weights; raise UnsafeFileError for a malformed file."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """Recipe for making a variant from its source. Runtimes refuse options that they lack.

    ``calibration`` is typical input (a text, or an .npz of inputs) from which the scheme measures
    which weights matter. ``prune_layers`` removes whole layers. ``sparsity`` is the fraction of
    each matrix, its smallest values, that is set to zero. ``block_size`` values share a scale.
    """

    name: str
    calibration: Path | None = None
    prune_layers: tuple[int, ...] = ()
    sparsity: float = 0.0
    block_size: int = 0


class Quantizer(Protocol):
    """Converter from a source file to variants."""

    @property
    def schemes(self) -> tuple[str, ...]:
        """Names of schemes, roughly from the largest variants to the smallest."""

    def calibrates(self, scheme: str) -> bool:
        """Return True if the scheme can use calibration data."""

    def quantize(self, source: Path, scheme: Scheme, destination: Path, progress: Progress) -> None:
        """Write ``destination`` completely or not at all; raise QuantizeError."""

    def predict_size(self, source: Path, scheme: Scheme) -> int:
        """Return the approximate bytes of the result, 0 if unpredictable; raise QuantizeError."""


class Runtime(Protocol):
    """Object that an entry point loads. Attributes are cheap: only ``load`` imports the engine."""

    name: str
    # File ending (without the dot) of the main file, for instance gguf.
    format: str
    # Names of the small files beside the main one that the engine also reads.
    side_files: tuple[str, ...]
    # Those that publishers keep in a subfolder: name in a variant, and path in a source folder.
    nested_side_files: tuple[tuple[str, str], ...]

    def version(self) -> str | None:
        """Return the installed engine's version, or None if this device cannot load it."""

    def inspector(self) -> Inspector: ...

    def quantizer(self) -> Quantizer: ...

    def prepare(self) -> None:
        """Import the engine's code, so that memory measured afterwards belongs to the model."""

    def load(self, spec: LoadSpec) -> Engine:
        """Load a model; raise LoadError, or UnsafeFileError before native code reads the files."""

    def write_servable(self, source: Path, destination: Path) -> str:
        """Write a copy whose inputs and outputs devices can serve, if ``source`` needs one.

        Returns a description of the changes, or "" if nothing was written. Raises BuildError.
        """

    def check_adapter(self, adapter: Inspection, base: Inspection) -> None:
        """Raise UnsupportedModelError unless the adapter fits the base."""

    def estimate_memory(self, inspection: Inspection, size_bytes: int, context_length: int) -> int:
        """Predict peak bytes: weights, KV cache at the context length, compute buffers."""

    def decode_bytes(self, inspection: Inspection) -> dict[str, int]:
        """Return the bytes of weights read per generated token, by type; empty if unknown."""
