"""Smaller variants of an ONNX model: half precision, int8, weights in blocks, sparse weights."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtimes.base import Progress, Scheme
from runtimes.errors import QuantizeError
from runtimes.onnx.inspect import OnnxInspector
from runtimes.onnx.model_file import MAX_MODEL_BYTES, read_model
from runtimes.quantizing import check_scheme, making

COPY: Final = "fp32"
CALIBRATED: Final = "int8_static"
_WEIGHT_BITS: Final = {"int8_weights": 8, "int4": 4}


class OnnxQuantizer:
    """The source is a float32 file; ``fp32`` copies it with the weights beside it.

    ``calibration`` (of int8_static) is a text for a language model in Optimum's layout, an .npz of
    inputs by name for others.
    """

    @property
    def schemes(self) -> tuple[str, ...]:
        return tuple(_SCHEMES)

    def calibrates(self, scheme: str) -> bool:
        return scheme == CALIBRATED

    def quantize(self, source: Path, scheme: Scheme, destination: Path, progress: Progress) -> None:
        _check(source, scheme)
        with making(scheme, destination, progress) as half_made:
            if scheme.name == COPY and not scheme.sparsity:
                _copy(source, half_made)
                return
            import onnx

            model = onnx.load(source)
            if scheme.sparsity:
                from runtimes.onnx.sparsify import drop_smallest

                if drop_smallest(model, scheme.sparsity) == 0:
                    raise _nothing_to_do(source, "sparsity")
            _SCHEMES[scheme.name](model, _Conversion(source, scheme, half_made, progress))

    def predict_size(self, source: Path, scheme: Scheme) -> int:
        """Only known of the copy: which matrices a scheme applies to, the graph decides."""
        _check(source, scheme)
        beside = sorted(read_model(source).external) if scheme.name == COPY else []
        paths = [source, *(source.with_name(name) for name in beside)]
        return sum(path.stat().st_size for path in paths) if scheme.name == COPY else 0


@dataclass(frozen=True, slots=True)
class _Conversion:
    """What is to be made, and where."""

    source: Path
    scheme: Scheme
    destination: Path
    progress: Progress


def _check(source: Path, scheme: Scheme) -> None:
    options = {"sparsity"}
    if scheme.name == CALIBRATED:
        options.add("calibration")
    if scheme.name in _WEIGHT_BITS:
        options.add("block_size")
    check_scheme("onnx", scheme, tuple(_SCHEMES), options)
    found = OnnxInspector().inspect(source).quantization
    if found != COPY:
        raise QuantizeError(
            f"{source.name} is {found} already, so {scheme.name} cannot be made of it",
            advice="Start from the float32 export.",
        )
    if scheme.name == CALIBRATED and scheme.calibration is None:
        raise QuantizeError(
            "int8_static needs data to find the activations' ranges on",
            advice="Give calibration data, or use int8, which finds them as it runs.",
        )


def _copy(source: Path, destination: Path) -> None:
    for name in sorted(read_model(source).external):
        shutil.copyfile(source.with_name(name), destination.with_name(name))
    shutil.copyfile(source, destination)


def _to_fp32(model: Any, job: _Conversion) -> None:
    _save(model, job.destination)


def _to_fp16(model: Any, job: _Conversion) -> None:
    """Weights and arithmetic in float16; inputs and outputs stay what programs send and read.

    A processor without float16 arithmetic computes in float32 all the same, from a smaller file.
    """
    import warnings

    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        # It says which constants, such as a mask's -3e38, become float16's largest.
        warnings.simplefilter("ignore")
        half = convert_float_to_float16(model, keep_io_types=True)
    _save(half, job.destination)
    if OnnxInspector().inspect(job.destination).quantization != "fp16":
        raise _nothing_to_do(job.source, "fp16")


def _to_int8(model: Any, job: _Conversion) -> None:
    """Dynamic quantization: int8 weights per channel, activations as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _say_prepared(model)
    quantize_dynamic(model, job.destination, weight_type=QuantType.QInt8, per_channel=True)
    if not any("Integer" in kind for kind in read_model(job.destination).operators):
        raise _nothing_to_do(job.source, "int8")


def _to_int8_static(model: Any, job: _Conversion) -> None:
    if job.scheme.calibration is None:
        raise ValueError(f"{job.scheme} was not checked")
    from runtimes.onnx.calibrate import quantize_calibrated

    _say_prepared(model)
    quantize_calibrated(model, job.source, job.scheme.calibration, job.destination, job.progress)
    if "QuantizeLinear" not in read_model(job.destination).operators:
        raise _nothing_to_do(job.source, "int8_static")


def _to_blocks(model: Any, job: _Conversion) -> None:
    """Weight-only: every constant matrix as 4- or 8-bit blocks, with a scale each."""
    from runtimes.onnx.blocks import BLOCK_SIZES, BLOCK_VALUES, quantize_matrices

    block_values = job.scheme.block_size or BLOCK_VALUES
    if block_values not in BLOCK_SIZES:
        raise QuantizeError(
            f"{job.scheme.name} has no blocks of {block_values} values",
            advice=f"Use one of: {', '.join(map(str, BLOCK_SIZES))}.",
        )
    if quantize_matrices(model, _WEIGHT_BITS[job.scheme.name], block_values) == 0:
        raise _nothing_to_do(job.source, job.scheme.name)
    _save(model, job.destination)


_Maker = Callable[[Any, _Conversion], None]
_SCHEMES: Final[dict[str, _Maker]] = {
    COPY: _to_fp32,
    "fp16": _to_fp16,
    "int8_weights": _to_blocks,
    "int8": _to_int8,
    CALIBRATED: _to_int8_static,
    "int4": _to_blocks,
}


def _say_prepared(model: Any) -> None:
    """Says that shapes are inferred, or else the tools advise on the root logger to do so first."""
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
            f"the quantized model has {model.ByteSize()} bytes, more than one ONNX file can hold",
            advice="Deploy it as GGUF.",
        )
    destination.write_bytes(model.SerializeToString(deterministic=True))
