"""Inspect fake models, and make smaller variants of them."""

import math
from pathlib import Path

import msgspec

from artifact.manifest import Task
from runtimes.base import Inspection, Progress, Scheme
from runtimes.fake.model import read_model, write_model
from runtimes.quantizing import atomic_output, check_scheme

SCHEMES = {"full": 1.0, "half": 0.5, "quarter": 0.25}


class FakeInspector:
    def inspect(self, path: Path) -> Inspection:
        model = read_model(path)
        return Inspection(
            format="fake",
            task=model.task,
            architecture="fake",
            parameters=model.parameters,
            quantization=model.quantization,
            context_length=model.context_length if model.task is Task.TEXT_GENERATION else 0,
            tensors=(),
            metadata={"memory_bytes": str(model.memory_bytes)},
        )


class FakeQuantizer:
    """Quantizer whose schemes are fractions of the size; each halving adds 10 % perplexity."""

    @property
    def schemes(self) -> tuple[str, ...]:
        return tuple(SCHEMES)

    def calibrates(self, scheme: str) -> bool:
        del scheme
        return False

    def quantize(self, source: Path, scheme: Scheme, destination: Path, progress: Progress) -> None:
        check_scheme("fake", scheme, self.schemes)
        fraction = SCHEMES[scheme.name]
        model = read_model(source)
        smaller = msgspec.structs.replace(
            model,
            quantization=scheme.name,
            memory_bytes=int(model.memory_bytes * fraction),
            allocate_bytes=int(model.allocate_bytes * fraction),
            padding=model.padding[: int(len(model.padding) * fraction)],
            perplexity=model.perplexity * (1 + 0.1 * math.log2(1 / fraction)),
        )
        with atomic_output(scheme, destination, progress) as half_made:
            write_model(half_made, smaller)

    # Predicted from the whole file, although only the padding shrinks: tests use large paddings.
    def predict_size(self, source: Path, scheme: Scheme) -> int:
        check_scheme("fake", scheme, self.schemes)
        return int(source.stat().st_size * SCHEMES[scheme.name])
