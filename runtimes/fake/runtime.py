"""The fake runtime: a small JSON file describes how the "model" behaves.

It implements every protocol that the real runtimes implement, deterministically and without any
dependency. ``faults`` in the file stage a crash, a hang or wrong outputs. Text models take each
UTF-8 byte as a token and repeat ``reply`` (or the reply of an adapter, a file of the same kind);
tensor models take ``input`` (FP32, rows of ``width``) and return ``output``, each value doubled.

A device advertises this runtime only if FLOTILLA_FAKE_RUNTIME is set, so that a release which names
it by mistake matches no fleet. Loading a file with it is always possible.
"""

import os
import time
from pathlib import Path

from runtimes.base import Inspection, LoadSpec
from runtimes.errors import LoadError, UnsupportedModelError
from runtimes.fake.engine import FakeEngine
from runtimes.fake.model import read_model
from runtimes.fake.variants import FakeInspector, FakeQuantizer
from runtimes.text.generation import choose_context


class FakeRuntime:
    name = "fake"
    format = "fake"
    side_files: tuple[str, ...] = ()
    nested_side_files: tuple[tuple[str, str], ...] = ()

    def version(self) -> str | None:
        return "1" if os.environ.get("FLOTILLA_FAKE_RUNTIME") else None

    def inspector(self) -> FakeInspector:
        return FakeInspector()

    def quantizer(self) -> FakeQuantizer:
        return FakeQuantizer()

    def prepare(self) -> None:
        """Do nothing: the fake engine imports no native code."""

    def load(self, spec: LoadSpec) -> FakeEngine:
        files = [path for path in spec.files.values() if path.is_file()]
        if len(files) != 1:
            raise LoadError(f"a fake model is one file, not {len(spec.files)}")
        model = read_model(files[0])
        time.sleep(model.load_seconds)
        match model.faults.on_load:
            case "error":
                raise LoadError("staged failure on load")
            case "crash":
                # As a shell reports SIGSEGV; no handler and no cleanup runs.
                os._exit(139)
            case "hang":
                time.sleep(3600)
            case "out_of_memory":
                raise MemoryError
        context_length = choose_context(
            spec.context_length, model.context_length, model.context_length
        )
        adapters = {name: read_model(path) for name, path in spec.adapters.items()}
        return FakeEngine(model, context_length, adapters=adapters, parallel=spec.parallel)

    def write_servable(self, source: Path, destination: Path) -> str:
        del source, destination
        return ""

    def check_adapter(self, adapter: Inspection, base: Inspection) -> None:
        if adapter.context_length != base.context_length:
            raise UnsupportedModelError(
                f"the adapter's context is {adapter.context_length}, the base's "
                f"{base.context_length}"
            )

    def decode_bytes(self, inspection: Inspection) -> dict[str, int]:
        del inspection
        return {}

    def estimate_memory(self, inspection: Inspection, size_bytes: int, context_length: int) -> int:
        del size_bytes, context_length
        return int(inspection.metadata["memory_bytes"])


RUNTIME = FakeRuntime()
