"""Predict a variant's memory from the manifest's estimate, corrected by measured loads.

Also finds the longest context that fits a budget.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from agent.selection.measurement import Measurement
from artifact.manifest import Variant
from artifact.sizes import in_bytes

# The error of an estimate has a constant and a proportional part, so a measured load corrects only
# estimates that differ from its own by at most this factor.
LIKE_SIZE: Final = 4.0
# Bounds of the correction: a larger error is not proportional.
LEAST_FACTOR: Final = 0.8
MOST_FACTOR: Final = 2.0
# Memory of a worker process beside its model: interpreter, engine and the engine's own buffers.
# Measured as the peak resident memory in probation and under the demo's traffic, less the
# manifest's estimate, on x86-64 with models of a few megabytes. Loads on the box correct it. An
# unknown runtime gets the largest.
PROCESS_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {"fake": 22 << 20, "llama_cpp": 63 << 20, "onnx": 83 << 20}
)
# Contexts are multiples of this many tokens.
CONTEXT_STEP: Final = 64


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Predicts the memory of one variant's process at any context; ``why`` explains a correction.

    ``process_bytes`` is the share of the process that does not depend on the model.
    """

    variant: Variant
    process_bytes: int = 0
    factor: float = 1.0
    offset_bytes: int = 0
    why: str = ""

    def bytes_at(self, context_length: int) -> int:
        """Return the predicted peak bytes at a context in tokens, at most the variant's own."""
        saved = (self.variant.context_length - context_length) * self.variant.context_bytes
        estimate = self.variant.memory_bytes + self.process_bytes - saved
        return max(0, int(estimate * self.factor) + self.offset_bytes)

    def with_more(self, more_bytes: int) -> "MemoryModel":
        """Return the model with ``more_bytes`` (adapters) added in the same process."""
        return replace(self, offset_bytes=self.offset_bytes + more_bytes)

    def longest_context(self, budget_bytes: int) -> int:
        """Return the longest context that fits; 0 if none does or ``context_bytes`` is unknown."""
        whole = self.variant.context_length
        if not whole or self.bytes_at(whole) <= budget_bytes:
            return whole
        if not self.variant.context_bytes:
            return 0
        # The memory is linear in the context: solve bytes_at(tokens) = budget_bytes.
        over = self.bytes_at(whole) - budget_bytes
        tokens = int(whole - over / (self.variant.context_bytes * self.factor))
        return max(0, tokens // CONTEXT_STEP * CONTEXT_STEP)


def process_bytes(runtime: str, known: Mapping[str, int] = PROCESS_BYTES) -> int:
    """Return the memory of a runtime's worker process beside its model."""
    return known.get(runtime, max(known.values(), default=0))


def memory_model(
    variant: Variant,
    model: str,
    measured: Sequence[Measurement],
    process: Mapping[str, int] = PROCESS_BYTES,
) -> MemoryModel:
    """Build the model from the variant's own load, else from loads of its runtime and size."""
    beside = process_bytes(variant.runtime, process)
    estimate = max(variant.memory_bytes + beside, 1)
    for one in measured:
        if one.is_of(model, variant.name) and one.memory_bytes > 0:
            # A load of less than half of the estimate is not credible as a peak.
            spent = max(-estimate // 2, one.memory_bytes - one.estimated_memory_bytes)
            why = f"took {in_bytes(one.memory_bytes)} when it was loaded here"
            return MemoryModel(variant, beside, offset_bytes=spent, why=why)
    alike = [
        one
        for one in measured
        if one.runtime == variant.runtime
        and one.memory_bytes > 0
        and estimate / LIKE_SIZE <= one.estimated_memory_bytes <= estimate * LIKE_SIZE
    ]
    if not alike:
        return MemoryModel(variant, beside)
    taken = sum(one.memory_bytes for one in alike)
    ratio = taken / sum(one.estimated_memory_bytes for one in alike)
    factor = min(MOST_FACTOR, max(LEAST_FACTOR, ratio))
    why = f"estimate x {factor:.2f}, as loading {variant.runtime} models took here"
    return MemoryModel(variant, beside, factor, why=why)
