"""How much memory an ONNX model will take, told from its file; without ONNX Runtime's own code.

Of what fresh processes took (tests/runtimes/test_memory.py): each weight is held once, packed for
the processor; while one is loaded, it is there twice. Weights in blocks keep their scales beside
the packed ones, which have them too, with as many sums of blocks. A processor without float16
arithmetic holds float16 weights as float32, and while loading both. A language model's keys and
values are kept in full precision and copied when tokens are appended; attention holds a few (heads,
pass, context) tensors at once; logits are given for every position of a pass. An encoder reads many
texts per pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from artifact.manifest import Task
from runtimes.base import Inspection, LoadSpec

# Prompt tokens per pass: logits and attention of all of them are held at once.
BATCH_TOKENS: Final = 64
# Of an encoder, padding included: hidden states and attention of all of them are held at once.
PASS_TOKENS: Final = 2048
# When a release names no context length: the model's own, at most this.
DEFAULT_CONTEXT: Final = 4096
_F32_BYTES: Final = 4
_CACHE_COPIES: Final = 2
_ATTENTION_COPIES: Final = 4
_LOGITS_COPIES: Final = 2
_ENCODER_ATTENTION_COPIES: Final = 2
# Three of four times the width, between the two halves of a layer.
_HIDDEN_COPIES: Final = 12
# Of the scales of weights in blocks: in the packed weights, and their sums.
_SCALE_COPIES: Final = 2
_F32_OF_F16: Final = 2

T = TypeVar("T")


def estimate(inspection: Inspection, size_bytes: int, context_length: int) -> int:
    """Predicted peak bytes."""
    if inspection.quantization == "fp16":
        held = size_bytes * _F32_OF_F16
        loading = size_bytes + held
    else:
        held = size_bytes + _SCALE_COPIES * _fact(inspection, "scale_bytes")
        loading = size_bytes + max((tensor.size for tensor in inspection.tensors), default=0)
    # Those in files beside the model are copied once more, out of pages that count too.
    loading += sum(tensor.size for tensor in inspection.tensors if tensor.file)
    return max(loading, held + _run_bytes(inspection, context_length))


def _run_bytes(inspection: Inspection, context_length: int) -> int:
    """What reading full contexts takes beside the weights; 0 where only the graph could tell."""
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
    """What a decoder takes beside the weights when a context is full, of so many values a token."""
    values = (
        _CACHE_COPIES * context * cache_values
        + _ATTENTION_COPIES * heads * BATCH_TOKENS * context
        + _LOGITS_COPIES * BATCH_TOKENS * vocabulary
    )
    return values * _F32_BYTES


def pass_bytes(heads: int, width: int, context: int) -> int:
    """What an encoder's pass takes beside the weights."""
    per_token = _ENCODER_ATTENTION_COPIES * heads * context + _HIDDEN_COPIES * width
    return max(PASS_TOKENS, context) * per_token * _F32_BYTES


def _fact(inspection: Inspection, name: str) -> int:
    return max(0, int(inspection.metadata[name]))


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loading left in resident memory, and the most that it had there meanwhile."""

    held_bytes: int
    peak_bytes: int

    def with_run(self, run_bytes: int) -> int:
        """The peak, when running is to take so much: what ``estimate`` predicts."""
        return max(self.peak_bytes, self.held_bytes + run_bytes)


def measured(spec: LoadSpec, load: Callable[[], T]) -> tuple[T, Loaded]:
    """Loads, and tells what resident memory that took; at least the files' size.

    ONNX Runtime itself does not say.
    """
    files = sum(path.stat().st_size for path in spec.files.values())
    resident, highest = _memory()
    loaded = load()
    resident_after, highest_after = _memory()
    held = max(files, resident_after - resident)
    # Where the mark stands from before, loading stayed below it.
    peak = highest_after - resident if highest_after > highest else 0
    return loaded, Loaded(held, max(held, peak))


def _memory() -> tuple[int, int]:
    """Resident bytes of this process, and the most that they ever were; 0 where nothing tells."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    told = {key: value for key, _, value in (line.partition(":") for line in lines)}
    resident, highest = (
        int(told.get(key, "0").removesuffix(" kB")) << 10 for key in ("VmRSS", "VmHWM")
    )
    return resident, highest
