"""Make smaller variants of an ONNX model: half precision, int8, weights in blocks, sparse."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtimes.base import Progress, Scheme
from runtimes.errors import QuantizeError
from runtimes.onnx.inspect import OnnxInspector
from runtimes.onnx.model_file import MAX_MODEL_BYTES, read_model
from runtimes.quantizing import UNQUANTIZED, atomic_output, check_scheme

COPY: Final = "fp32"
CALIBRATED: Final = "int8_static"
_WEIGHT_BITS: Final = {"int8_weights": 8, "int4": 4}


class OnnxQuantizer:
    """Quantizer of float files; ``fp32`` copies a float32 file and its external weights.

    ``calibration`` (for int8_static) is a text for a language model in Optimum's layout, and an
    .npz of inputs by name for other models.
    """

    @property
    def schemes(self) -> tuple[str, ...]:
        return tuple(_SCHEMES)

    def calibrates(self, scheme: str) -> bool:
        return scheme == CALIBRATED

    def quantize(self, source: Path, scheme: Scheme, destination: Path, progress: Progress) -> None:
        found = _check(source, scheme)
        with atomic_output(scheme, destination, progress) as half_made:
            if scheme.name == found and not scheme.sparsity:
                _copy(source, half_made)
                return
            import onnx

            from runtimes.onnx.graph import normalize, widen_halves

            model = onnx.load(source)
            normalize(model)
            if found == "fp16" and scheme.name != found:
                widen_halves(model)
            if scheme.sparsity:
                from runtimes.onnx.sparsify import drop_smallest

                if drop_smallest(model, scheme.sparsity) == 0:
                    raise _nothing_to_do(source, "sparsity")
            _SCHEMES[scheme.name](model, _Conversion(source, scheme, half_made, progress))

    def predict_size(self, source: Path, scheme: Scheme) -> int:
        """Return the bytes of a copy; 0 for other schemes, whose result depends on the graph."""
        if scheme.name != _check(source, scheme):
            return 0
        paths = [source, *(source.with_name(name) for name in read_model(source).external)]
        return sum(path.stat().st_size for path in paths)


@dataclass(frozen=True, slots=True)
class _Conversion:
    """Source, scheme and destination of one conversion."""

    source: Path
    scheme: Scheme
    destination: Path
    progress: Progress


def _check(source: Path, scheme: Scheme) -> str:
    """Return the source's quantization; raise QuantizeError for options that do not apply."""
    options = {"sparsity"}
    if scheme.name == CALIBRATED:
        options.add("calibration")
    if scheme.name in _WEIGHT_BITS:
        options.add("block_size")
    check_scheme("onnx", scheme, tuple(_SCHEMES), options)
    if scheme.name == CALIBRATED and scheme.calibration is None:
        raise QuantizeError(
            "int8_static needs data to measure the ranges of activations",
            advice="Give calibration data, or use int8, which measures them at run time.",
        )
    found = OnnxInspector().inspect(source).quantization
    if scheme.name == COPY and found not in UNQUANTIZED:
        raise QuantizeError(
            f"{source.name} is {found}, which cannot be converted back to fp32",
            advice="Start from the float32 export, or deploy the file as published (source).",
        )
    return found


def _copy(source: Path, destination: Path) -> None:
    for name in sorted(read_model(source).external):
        shutil.copyfile(source.with_name(name), destination.with_name(name))
    shutil.copyfile(source, destination)


def _to_fp32(model: Any, conversion: _Conversion) -> None:
    _save(model, conversion.destination)


def _to_fp16(model: Any, conversion: _Conversion) -> None:
    """Convert weights and arithmetic to float16; inputs and outputs keep their types.

    A processor without float16 arithmetic still computes in float32, from a smaller file.
    """
    import warnings

    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        # It warns of constants, such as a mask's -3e38, that it clips to float16's range.
        warnings.simplefilter("ignore")
        half = convert_float_to_float16(model, keep_io_types=True)
    _save(half, conversion.destination)
    if OnnxInspector().inspect(conversion.destination).quantization != "fp16":
        raise _nothing_to_do(conversion.source, "fp16")


def _to_int8(model: Any, conversion: _Conversion) -> None:
    """Quantize dynamically: int8 weights per channel; activations are scaled at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from runtimes.onnx.graph import non_finite_nodes

    _mark_prepared(model)
    quantize_dynamic(
        model,
        conversion.destination,
        weight_type=QuantType.QInt8,
        per_channel=True,
        nodes_to_exclude=non_finite_nodes(model),
    )
    # The tool writes an unchanged model without a word if it finds no matrix.
    if not any("Integer" in kind for kind in read_model(conversion.destination).operators):
        raise _nothing_to_do(conversion.source, "int8")


def _to_int8_static(model: Any, conversion: _Conversion) -> None:
    if conversion.scheme.calibration is None:
        raise ValueError(f"{conversion.scheme} was not checked")
    from runtimes.onnx.calibrate import quantize_calibrated

    _mark_prepared(model)
    quantize_calibrated(
        model,
        conversion.source,
        conversion.scheme.calibration,
        conversion.destination,
        conversion.progress,
    )
    if "QuantizeLinear" not in read_model(conversion.destination).operators:
        raise _nothing_to_do(conversion.source, "int8_static")


def _to_blocks(model: Any, conversion: _Conversion) -> None:
    """Quantize weights only: every constant matrix becomes 4- or 8-bit blocks with a scale each."""
    from runtimes.onnx.blocks import BLOCK_SIZES, BLOCK_VALUES, quantize_matrices

    block_values = conversion.scheme.block_size or BLOCK_VALUES
    if block_values not in BLOCK_SIZES:
        raise QuantizeError(
            f"the block size is {block_values}, which {conversion.scheme.name} does not allow",
            advice=f"Use one of: {', '.join(map(str, BLOCK_SIZES))}.",
        )
    if quantize_matrices(model, _WEIGHT_BITS[conversion.scheme.name], block_values) == 0:
        raise _nothing_to_do(conversion.source, conversion.scheme.name)
    _save(model, conversion.destination)


_Maker = Callable[[Any, _Conversion], None]
_SCHEMES: Final[dict[str, _Maker]] = {
    COPY: _to_fp32,
    "fp16": _to_fp16,
    "int8_weights": _to_blocks,
    "int8": _to_int8,
    CALIBRATED: _to_int8_static,
    "int4": _to_blocks,
}


def _mark_prepared(model: Any) -> None:
    """Mark shapes as inferred, or else the tools log advice on the root logger."""
    from onnx import helper

    properties = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, properties | {"onnx.quant.pre_process": "onnxruntime.quant"})


def _nothing_to_do(source: Path, scheme: str) -> QuantizeError:
    return QuantizeError(
        f"{source.name} has no matrix that {scheme} applies to", advice="Deploy it as fp32."
    )


def _save(model: Any, destination: Path) -> None:
    if model.ByteSize() > MAX_MODEL_BYTES:
        raise QuantizeError(
            f"the quantized model is {model.ByteSize():,} bytes; the maximum of an ONNX file is "
            f"{MAX_MODEL_BYTES:,}",
            advice="Use a smaller scheme, or deploy the model as GGUF.",
        )
    # Deterministic: maps have no order otherwise, and equal variants must share their chunks.
    destination.write_bytes(model.SerializeToString(deterministic=True))
