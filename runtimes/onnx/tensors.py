"""Engine for tensors: any ONNX model, through the Open Inference Protocol."""

from collections.abc import Sequence
from functools import partial

from onnxruntime import RunOptions

from artifact.manifest import Task
from runtimes.arrays import to_array, to_value
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
from runtimes.errors import InvalidInputError, UnsupportedModelError
from runtimes.onnx.allocator import return_freed
from runtimes.onnx.session import open_session, specs
from runtimes.tensors import check_inputs

_TRIM_ARENA = "memory.enable_memory_arena_shrinkage"
_WORTH_TRIMMING_BYTES = 1 << 20


class OnnxTensorEngine:
    """An InferenceSession for classification and other tensors."""

    def __init__(self, spec: LoadSpec) -> None:
        self._task = spec.task
        self._session, loaded = open_session(spec)
        self._memory_bytes = loaded.with_run(0)
        self._inputs = specs(self._session.get_inputs())
        self._outputs = specs(self._session.get_outputs())
        self._last_shapes: list[tuple[int, ...]] = []
        self._last_bytes = 0

    def infer(
        self, inputs: Sequence[TensorValue], on_cancel: OnCancel | None = None
    ) -> list[TensorValue]:
        if self._session is None:
            raise UnsupportedModelError("the model is closed", advice="Load it again.")
        check_inputs(inputs, self._inputs)
        feed = {value.name: to_array(value) for value in inputs}
        options = RunOptions()
        shapes = [array.shape for array in feed.values()]
        if shapes != self._last_shapes:
            # ONNX Runtime's arena keeps blocks for every shape that it has seen. With free shapes
            # it grew to many times the model; equal shapes reuse the blocks and need no trimming.
            options.add_run_config_entry(_TRIM_ARENA, "cpu:0")
        self._last_shapes = shapes
        if on_cancel is not None:
            # ONNX Runtime reads the flag between two nodes of the graph.
            on_cancel(partial(setattr, options, "terminate", True))
        try:
            outputs = self._session.run(None, feed, options)
        except Exception as error:
            # Only the graph knows which sizes of free dimensions work; the session stays usable.
            raise InvalidInputError(
                f"the model refuses these inputs: {str(error)[:500]}",
                advice="Check the sizes of the free dimensions.",
            ) from error
        bytes_in = sum(array.nbytes for array in feed.values())
        if self._last_bytes - bytes_in > _WORTH_TRIMMING_BYTES:
            # glibc keeps up to 64 MiB of what the arena has freed after the larger run.
            return_freed()
        self._last_bytes = bytes_in
        named = zip(self._outputs, outputs, strict=True)
        return [to_value(spec.name, output) for spec, output in named]

    def tensors(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        return self._inputs, self._outputs

    def generate(self, prompt: str, sampling: Sampling) -> Generation:
        raise self._no_text(f"{len(prompt)} characters and {sampling.max_tokens} tokens")

    def render_chat(self, messages: Sequence[dict[str, str]]) -> str:
        raise self._no_text(f"{len(messages)} messages")

    def score(self, text: str) -> Steps[Score]:
        raise self._no_text(f"{len(text)} characters")

    def embed(self, texts: Sequence[str]) -> Steps[Embeddings]:
        raise self._no_text(f"{len(texts)} texts")

    @property
    def parallel(self) -> int:
        return 1

    def memory_bytes(self) -> int:
        return self._memory_bytes

    def close(self) -> None:
        self._session = None

    def _no_text(self, sent: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"this model's task is {self._task}, not {Task.TEXT_GENERATION}; the request has "
            f"{sent}",
            advice="Send tensors to its infer endpoint.",
        )
