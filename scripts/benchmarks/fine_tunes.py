"""Random models and fine-tunes of them: all weights a little, or the last fifth of the layers."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtimes.base import Scheme, TensorInfo
from runtimes.llama_cpp.inspect import GgufInspector
from runtimes.llama_cpp.quantize import LlamaCppQuantizer

SCRIPTS = Path(__file__).parents[1]
# Share of each tensor's standard deviation.
DENSE_STEP = 0.01
LAYER_STEP = 0.05
TUNED_LAYERS = 0.2
SCHEMES = ("q4_k_m", "q8_0")
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class FineTunes:
    """A model quantized by ``SCHEMES``, and two fine-tunes of it quantized likewise."""

    directory: Path

    def base(self, scheme: str) -> Path:
        return self.directory / f"base-{scheme}.gguf"

    def dense(self, scheme: str) -> Path:
        """Files of the fine-tune that moved every weight by 1 % of its tensor's deviation."""
        return self.directory / f"dense-{scheme}.gguf"

    def last_layers(self, scheme: str) -> Path:
        """Files of the fine-tune that moved only the last fifth of the layers."""
        return self.directory / f"last-{scheme}.gguf"


def make(directory: Path, parameters: str) -> FineTunes:
    """Build the files or reuse them; minutes for hundreds of millions of parameters."""
    tunes = FineTunes(directory)
    if all(tunes.last_layers(scheme).exists() for scheme in SCHEMES):
        return tunes
    directory.mkdir(parents=True, exist_ok=True)
    source = directory / "f16.gguf"
    generator = SCRIPTS / "demo_models" / "random_llama.py"
    command = [sys.executable, str(generator), str(source), "--parameters", parameters]
    subprocess.run(command, check=True, stdout=sys.stderr)
    tensors = GgufInspector().inspect(source).tensors
    numbers = [int(found[1]) for each in tensors if (found := _LAYER.match(each.name))]
    layers = 1 + max(numbers)
    first = layers - max(1, round(layers * TUNED_LAYERS))
    last = [each for each in tensors if (m := _LAYER.match(each.name)) and int(m[1]) >= first]
    _quantize(source, tunes.base)
    tuned = directory / "tuned.gguf"
    for step, moved, path in (
        (DENSE_STEP, tensors, tunes.dense),
        (LAYER_STEP, last, tunes.last_layers),
    ):
        shutil.copyfile(source, tuned)
        _move(tuned, moved, step)
        _quantize(tuned, path)
        tuned.unlink()
    source.unlink()
    return tunes


def _move(path: Path, tensors: Sequence[TensorInfo], step: float) -> None:
    random = np.random.default_rng(1)
    with path.open("r+b") as file:
        for tensor in tensors:
            dtype = "<f2" if tensor.type == "f16" else "<f4"
            file.seek(tensor.offset)
            weights = np.frombuffer(file.read(tensor.size), dtype).astype(np.float32)
            # Norms of a random model all equal one, and training moves them too.
            spread = float(weights.std()) or 1.0
            weights += random.standard_normal(weights.shape, np.float32) * (step * spread)
            file.seek(tensor.offset)
            file.write(weights.astype(dtype).tobytes())


def _quantize(source: Path, path: Callable[[str], Path]) -> None:
    for scheme in SCHEMES:
        LlamaCppQuantizer().quantize(source, Scheme(scheme), path(scheme), lambda *_: None)
