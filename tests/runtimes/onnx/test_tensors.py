"""Cancelling calls of ONNX Runtime."""

import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from endless import write_model

from artifact.manifest import Task
from runtimes import registry
from runtimes.base import LoadSpec, TensorValue
from runtimes.errors import InvalidInputError


def rounds(count: int) -> list[TensorValue]:
    return [TensorValue("rounds", "INT64", (), struct.pack("<q", count))]


def test_a_cancelled_call_ends_early_and_the_next_is_answered(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx")
    spec = LoadSpec({"model.onnx": path}, Task.TENSOR, threads=1)
    engine = registry.find("onnx").load(spec)
    stops: list[Callable[[], None]] = []

    def soon(stop: Callable[[], None]) -> None:
        stops.append(stop)
        threading.Timer(0.1, stop).start()

    for on_cancel in (soon, lambda stop: stop()):
        with pytest.raises(InvalidInputError, match="terminate"):
            engine.infer(rounds(1 << 62), on_cancel)
    # Cancelling again must not end a later call.
    (output,) = engine.infer(rounds(3), lambda _: stops[0]())
    assert struct.unpack("<q", output.data) == (3,)
    engine.close()
