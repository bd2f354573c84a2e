"""The llama.cpp runtime: imports its engine only when a model is loaded."""

import importlib
import os
from pathlib import Path

from runtimes.base import Engine, Inspection, Inspector, LoadSpec, Quantizer

# Read by libgomp when the engine is loaded. By default its threads spin for milliseconds at every
# barrier and starve when they share cores: on two busy cores a model of 24 M parameters fell from
# 600 to 10 tokens/s. With this many rounds, which take microseconds, it kept 90.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


class LlamaCppRuntime:
    name = "llama_cpp"
    format = "gguf"
    side_files: tuple[str, ...] = ()
    nested_side_files: tuple[tuple[str, str], ...] = ()

    def version(self) -> str | None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("llama-cpp-python")
        except PackageNotFoundError:
            return None

    def inspector(self) -> Inspector:
        from runtimes.llama_cpp.inspect import GgufInspector

        return GgufInspector()

    def quantizer(self) -> Quantizer:
        from runtimes.llama_cpp.quantize import LlamaCppQuantizer

        return LlamaCppQuantizer()

    def prepare(self) -> None:
        importlib.import_module("runtimes.llama_cpp.engine")

    def load(self, spec: LoadSpec) -> Engine:
        from runtimes.llama_cpp.engine import load

        return load(spec)

    def write_servable(self, source: Path, destination: Path) -> str:
        from runtimes.llama_cpp.finite import check_finite
        from runtimes.llama_cpp.shards import merge_shards

        changes = merge_shards(source, destination)
        check_finite(destination if changes else source)
        return changes

    def check_adapter(self, adapter: Inspection, base: Inspection) -> None:
        from runtimes.llama_cpp.adapters import check_adapter

        check_adapter(adapter, base)

    def decode_bytes(self, inspection: Inspection) -> dict[str, int]:
        from runtimes.llama_cpp.decoding import decode_bytes

        return decode_bytes(inspection)

    def estimate_memory(self, inspection: Inspection, size_bytes: int, context_length: int) -> int:
        from runtimes.llama_cpp.memory import estimate

        return estimate(inspection, size_bytes, context_length)


RUNTIME = LlamaCppRuntime()
