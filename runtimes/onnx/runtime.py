"""The ONNX runtime: imports its engine only when a model is loaded."""

import importlib
import os
from pathlib import Path

from runtimes.base import Engine, Inspection, Inspector, LoadSpec, Quantizer

# Read when the library is loaded. Without it, the wheel writes a device id to the user's cache
# folder and reports events to its vendor.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


class OnnxRuntime:
    name = "onnx"
    format = "onnx"
    side_files = (
        "tokenizer.json",
        "tokenizer_config.json",
        "config.json",
        "generation_config.json",
        "chat_template.jinja",
        "pooling.json",
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
    )
    # sentence-transformers keeps this one in a folder; a variant's files have plain names.
    nested_side_files = (("pooling.json", "1_Pooling/config.json"),)

    def version(self) -> str | None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("onnxruntime")
        except PackageNotFoundError:
            return None

    def inspector(self) -> Inspector:
        from runtimes.onnx.inspect import OnnxInspector

        return OnnxInspector()

    def quantizer(self) -> Quantizer:
        from runtimes.onnx.quantize import OnnxQuantizer

        return OnnxQuantizer()

    def prepare(self) -> None:
        from runtimes.onnx.session import warm_up

        importlib.import_module("runtimes.onnx.engine")
        warm_up()

    def load(self, spec: LoadSpec) -> Engine:
        from runtimes.onnx.engine import load

        return load(spec)

    def write_servable(self, source: Path, destination: Path) -> str:
        from runtimes.onnx.servable import write_servable

        return write_servable(source, destination)

    def check_adapter(self, adapter: Inspection, base: Inspection) -> None:
        from runtimes.errors import UnsupportedModelError

        raise UnsupportedModelError(
            f"ONNX models ({base.architecture[:64]!a}) cannot take adapters ({adapter.format})",
            advice="Merge the adapter into its base, or deploy a GGUF variant.",
        )

    def decode_bytes(self, inspection: Inspection) -> dict[str, int]:
        del inspection
        return {}

    def estimate_memory(self, inspection: Inspection, size_bytes: int, context_length: int) -> int:
        from runtimes.onnx.memory import estimate

        return estimate(inspection, size_bytes, context_length)


RUNTIME = OnnxRuntime()
