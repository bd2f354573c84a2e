"""Quantization of GGUF models by llama.cpp."""

import ctypes
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from artifact.manifest import Task
from runtimes.base import Inspection, Progress, Scheme
from runtimes.errors import QuantizeError
from runtimes.llama_cpp.inspect import GgufInspector
from runtimes.processor.threads import compute_threads
from runtimes.quantizing import atomic_output, check_scheme

# Mean squares per column (arrays) by name of the weight.
Importance = dict[str, Any]

# llama_ftype by scheme. A matrix whose rows no block divides gets another type from llama.cpp: q5_0
# instead of q4_k, and f16 at last.
_SCHEMES: Final = {
    "f16": 1,
    "bf16": 32,
    "q8_0": 7,
    "q6_k": 18,
    "q5_k_m": 17,
    "q5_k_s": 16,
    "q5_0": 8,
    "q4_k_m": 15,
    "q4_k_s": 14,
    "q4_0": 2,
    "iq4_nl": 25,
    "iq4_xs": 30,
    "q3_k_l": 13,
    "q3_k_m": 12,
    "iq3_m": 27,
    "q3_k_s": 11,
    "iq3_s": 26,
    "iq3_xxs": 23,
    "q2_k": 10,
    "iq2_m": 29,
    "iq2_s": 28,
    "iq2_xs": 20,
    "iq2_xxs": 19,
}
# At so few bits llama.cpp requires an importance matrix.
_NEED_CALIBRATION: Final = frozenset({"iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs"})
# Source types, and the 16-bit type that keeps all their information.
_HALVES: Final = {
    "f16": frozenset({"f16"}),
    "bf16": frozenset({"bf16"}),
    "f32": frozenset({"f16", "bf16"}),
}
_OPTIONS: Final = ("calibration", "prune_layers")
_TENSOR_LINE: Final = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]")
_SIZE_LINE: Final = re.compile(r"quant size\s*=\s*([0-9.]+) MiB")

_ANY_IMPORTANCE: Final[Importance] = {}


class LlamaCppQuantizer:
    """Quantizer of GGUF files. ``calibration`` is a text for the importance matrix.

    The last importance matrix is cached, because a search tries many schemes with the same one.
    """

    def __init__(self) -> None:
        self._importance: tuple[tuple[Path, Path], Importance] | None = None

    @property
    def schemes(self) -> tuple[str, ...]:
        return tuple(_SCHEMES)

    def calibrates(self, scheme: str) -> bool:
        return scheme in _SCHEMES and scheme not in _HALVES

    def quantize(self, source: Path, scheme: Scheme, destination: Path, progress: Progress) -> None:
        inspection = self._check(source, scheme)
        importance = self._importance_of(source, scheme, progress)
        with atomic_output(scheme, destination, progress) as half_made:
            if inspection.quantization == scheme.name and not scheme.prune_layers:
                shutil.copyfile(source, half_made)
                return
            _quantize(source, scheme, importance, half_made, progress)

    def predict_size(self, source: Path, scheme: Scheme) -> int:
        """Return llama.cpp's dry-run size; exact within 0.01 MiB and the header's changes."""
        inspection = self._check(source, scheme)
        found = 0.0

        def listen(line: str) -> None:
            nonlocal found
            if match := _SIZE_LINE.search(line):
                found = float(match[1])

        # The presence of an importance matrix changes some weights' types; its values do not.
        params, _kept = _parameters(scheme, _ANY_IMPORTANCE if scheme.calibration else None)
        params.dry_run = True
        _run(source, Path(os.devnull), scheme, params, listen)
        header = min((tensor.offset for tensor in inspection.tensors), default=0)
        return header + int(found * (1 << 20)) if found else 0

    def _check(self, source: Path, scheme: Scheme) -> Inspection:
        check_scheme("llama_cpp", scheme, self.schemes, _OPTIONS)
        inspection = GgufInspector().inspect(source)
        _check_source(source, scheme, inspection)
        _check_layers(scheme, inspection)
        return inspection

    def _importance_of(self, source: Path, scheme: Scheme, progress: Progress) -> Importance | None:
        if scheme.calibration is None or not self.calibrates(scheme.name):
            return None
        from runtimes.llama_cpp.importance import measure_importance

        key = (source, scheme.calibration)
        if self._importance is None or self._importance[0] != key:
            self._importance = key, measure_importance(*key, progress)
        return self._importance[1]


def _check_source(source: Path, scheme: Scheme, inspection: Inspection) -> None:
    found = inspection.quantization
    if scheme.name in _HALVES and scheme.name not in _HALVES.get(found, ()):
        raise QuantizeError(
            f"{source.name} is {found}; converting it to {scheme.name} loses precision or only "
            "adds bytes",
            advice=f"Export the model as {scheme.name}, or deploy it as published (source).",
        )
    if inspection.task is not Task.TEXT_GENERATION and scheme.calibration is not None:
        raise QuantizeError(
            f"{source.name} is not a language model; only those can be calibrated",
            advice="Leave the calibration out (calibrate: false in a recipe).",
        )
    if scheme.name in _NEED_CALIBRATION and scheme.calibration is None:
        raise QuantizeError(
            f"{scheme.name} needs an importance matrix, which is measured on a calibration text",
            advice="Give a calibration text.",
        )


def _check_layers(scheme: Scheme, inspection: Inspection) -> None:
    """Check the list of skipped layers against the model."""
    prefix = f"{inspection.architecture}."
    layers = inspection.metadata.get(f"{prefix}block_count", "0")
    count = int(layers) if layers.isdecimal() else 0
    dropped = set(scheme.prune_layers)
    if dropped - set(range(count)) or len(dropped) != len(scheme.prune_layers):
        raise QuantizeError(
            f"prune_layers is {list(scheme.prune_layers)}; the model has the layers 0 to "
            f"{count - 1}",
            advice="Name each layer to remove once.",
        )
    if dropped and len(dropped) == count:
        raise QuantizeError(
            f"prune_layers removes all {count} layers", advice="Keep at least one layer."
        )
    lists = [key for key, length in inspection.metadata.items() if length == layers and "#" in key]
    if dropped and any(key.startswith(prefix) for key in lists):
        raise QuantizeError(
            f"{inspection.architecture} has per-layer settings: {lists[0].rstrip('#')}",
            advice="Its layers cannot be removed here; prune it in its training framework.",
        )


def _quantize(
    source: Path,
    scheme: Scheme,
    importance: Importance | None,
    destination: Path,
    progress: Progress,
) -> None:
    def listen(line: str) -> None:
        if found := _TENSOR_LINE.match(line):
            progress(f"quantizing to {scheme.name}", int(found[1]) / max(1, int(found[2])))

    params, _kept = _parameters(scheme, importance)
    _run(source, destination, scheme, params, listen)


def _parameters(scheme: Scheme, importance: Importance | None) -> tuple[Any, Any]:
    """Return llama.cpp's parameters and the objects that they point to, to keep alive."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = _SCHEMES[scheme.name]
    # Files that are quantized already: the build records a warning in the manifest.
    params.allow_requantize = True
    params.nthread = compute_threads()
    # Both lists end with a terminating entry.
    layers = (ctypes.c_int32 * (len(scheme.prune_layers) + 1))(*sorted(scheme.prune_layers), -1)
    if scheme.prune_layers:
        params.prune_layers = layers
    named = importance or {}
    entries = (llama_cpp.llama_model_imatrix_data * (len(named) + 1))()
    for entry, (name, values) in zip(entries, named.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    if importance is not None:
        params.imatrix = entries
    return params, (layers, entries, importance)


def _run(
    source: Path, destination: Path, scheme: Scheme, params: Any, listen: Callable[[str], None]
) -> None:
    import llama_cpp

    from runtimes.llama_cpp.log import listening

    last_line = ""

    def listen_and_keep(line: str) -> None:
        nonlocal last_line
        last_line = line
        listen(line)

    with listening(listen_and_keep):
        status = llama_cpp.llama_model_quantize(
            str(source).encode(), str(destination).encode(), ctypes.byref(params)
        )
    if status != 0:
        raise QuantizeError(
            f"llama.cpp could not quantize {source.name} to {scheme.name}: {last_line!a:.400}",
            advice="Use another scheme, or check the source with `flotilla model inspect`.",
        )
