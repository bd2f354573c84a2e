"""Predict the memory of an ONNX model from its inspection, beside ONNX Runtime's own code.

The rules come from measurements in fresh processes (tests/runtimes/test_memory.py). Each weight is
held once, packed for the processor, and twice while it is loaded. Weights in blocks keep their
scales beside the packed weights, which contain them again together with as many sums of blocks. A
processor without float16 arithmetic holds float16 weights as float32, and both while loading. Keys
and values of a language model have full precision and are copied when tokens are appended;
attention holds a few (heads, pass, context) tensors at once; logits exist for every position of a
pass. An encoder reads many texts per pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from artifact.manifest import Task
from runtimes.base import Inspection, LoadSpec

# Prompt tokens per pass of a decoder: logits and attention of all of them are in memory at once.
BATCH_TOKENS: Final = 64
# Tokens per pass of an encoder, padding included.
PASS_TOKENS: Final = 2048
# Without a context length in the release: the model's own, at most this.
DEFAULT_CONTEXT: Final = 4096
_F32_BYTES: Final = 4
_CACHE_COPIES: Final = 2
_ATTENTION_COPIES: Final = 4
_LOGITS_COPIES: Final = 2
_ENCODER_ATTENTION_COPIES: Final = 2
# Between the two halves of a layer: three tensors of four times the width.
_HIDDEN_COPIES: Final = 12
# Scales of weights in blocks exist again in the packed weights, with their sums.
_SCALE_COPIES: Final = 2
_F32_OF_F16: Final = 2

T = TypeVar("T")


def estimate(inspection: Inspection, size_bytes: int, context_length: int) -> int:
    """Predict peak bytes."""
    if inspection.quantization == "fp16":
        held = size_bytes * _F32_OF_F16
        loading = size_bytes + held
    else:
        held = size_bytes + _SCALE_COPIES * _fact(inspection, "scale_bytes")
        loading = size_bytes + max((tensor.size for tensor in inspection.tensors), default=0)
    # External weights are copied out of mapped pages, which also count as resident.
    loading += sum(tensor.size for tensor in inspection.tensors if tensor.file)
    return max(loading, held + _run_bytes(inspection, context_length))


def _run_bytes(inspection: Inspection, context_length: int) -> int:
    """Predict the bytes of a run with full contexts, beside the weights; 0 for tensor models."""
    context = context_length or min(inspection.context_length, DEFAULT_CONTEXT)
    match inspection.task:
        case Task.TEXT_GENERATION:
            return generation_bytes(
                _fact(inspection, "attention_heads"),
                _fact(inspection, "cache_values_per_token"),
                _fact(inspection, "vocabulary"),
                context,
            )
        case Task.EMBEDDING:
            heads, width = _fact(inspection, "attention_heads"), _fact(inspection, "width")
            return pass_bytes(heads, width, context)
        case _:
            return 0


def generation_bytes(heads: int, cache_values: int, vocabulary: int, context: int) -> int:
    """Return the bytes that a decoder needs beside the weights when its context is full.

    ``cache_values`` is the number of key and value elements per token.
    """
    values = (
        _CACHE_COPIES * context * cache_values
        + _ATTENTION_COPIES * heads * BATCH_TOKENS * context
        + _LOGITS_COPIES * BATCH_TOKENS * vocabulary
    )
    return values * _F32_BYTES


def pass_bytes(heads: int, width: int, context: int) -> int:
    """Return the bytes that one pass of an encoder needs beside the weights."""
    per_token = _ENCODER_ATTENTION_COPIES * heads * context + _HIDDEN_COPIES * width
    return max(PASS_TOKENS, context) * per_token * _F32_BYTES


def _fact(inspection: Inspection, name: str) -> int:
    return max(0, int(inspection.metadata[name]))


@dataclass(frozen=True, slots=True)
class Loaded:
    """Resident bytes after loading, and their peak during loading."""

    held_bytes: int
    peak_bytes: int

    def with_run(self, run_bytes: int) -> int:
        """Return the peak if a run needs ``run_bytes``: the figure that ``estimate`` predicts."""
        return max(self.peak_bytes, self.held_bytes + run_bytes)


def measured(spec: LoadSpec, load: Callable[[], T]) -> tuple[T, Loaded]:
    """Call ``load`` and measure the resident memory that it takes, at least the files' size.

    ONNX Runtime does not report its memory.
    """
    files = sum(path.stat().st_size for path in spec.files.values())
    resident, highest = _memory()
    loaded = load()
    resident_after, highest_after = _memory()
    held = max(files, resident_after - resident)
    # An unchanged VmHWM is an earlier peak: loading stayed below it.
    peak = highest_after - resident if highest_after > highest else 0
    return loaded, Loaded(held, max(held, peak))


def _memory() -> tuple[int, int]:
    """Return resident bytes of this process and their peak so far; 0 without /proc."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    values = {key: value for key, _, value in (line.partition(":") for line in lines)}
    resident, highest = (
        int(values.get(key, "0").removesuffix(" kB")) << 10 for key in ("VmRSS", "VmHWM")
    )
    return resident, highest
