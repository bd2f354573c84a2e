"""A third runtime, for tests: a small JSON file describes how the "model" behaves."""

from runtimes.fake.engine import EMBEDDING_DIMENSIONS, FakeEngine
from runtimes.fake.model import FakeModel, Faults, read_model, write_model
from runtimes.fake.runtime import RUNTIME, FakeRuntime
from runtimes.fake.variants import FakeInspector, FakeQuantizer

__all__ = [
    "EMBEDDING_DIMENSIONS",
    "RUNTIME",
    "FakeEngine",
    "FakeInspector",
    "FakeModel",
    "FakeQuantizer",
    "FakeRuntime",
    "Faults",
    "read_model",
    "write_model",
]
