"""Static quantization: fixed int8 ranges of activations, measured by running the model on data.

It is faster than dynamic int8 and loses accuracy when inputs leave the measured ranges, so the data
must resemble real inputs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from runtimes.arrays import read_arrays
from runtimes.base import Progress
from runtimes.errors import QuantizeError, RuntimeFault
from runtimes.onnx.graph import non_finite_nodes
from runtimes.onnx.inspect import PAST
from runtimes.onnx.tokens import TextTokenizer
from runtimes.quantizing import JSON_LINES, folders_of, read_calibration, read_lines, read_text

# Ranges are minima and maxima, which more data changes little.
MAX_WINDOWS: Final = 64
WINDOW_TOKENS: Final = 128
MAX_ROWS: Final = 2048
_BATCH_ROWS: Final = 32

Feed = dict[str, NDArray[Any]]


def quantize_calibrated(
    model: onnx.ModelProto, source: Path, calibration: Path, destination: Path, progress: Progress
) -> None:
    """Write ``destination`` with int8 weights and activations (QDQ); raise QuantizeError."""
    feeds = list(_feeds(model, source, calibration))
    reader = _Reader(feeds, progress)
    try:
        quantize_static(
            model,
            destination,
            reader,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
            nodes_to_exclude=non_finite_nodes(model),
            # Products of two activations, as in attention, stay in float32.
            extra_options={"MatMulConstBOnly": True},
        )
    except RuntimeFault:
        raise
    except Exception as error:
        raise QuantizeError(
            f"{source.name} cannot be calibrated on {calibration.name}: {str(error)[:500]}",
            advice="Give inputs of this model, or use int8, which needs no data.",
        ) from error


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # its package has no types
    def __init__(self, feeds: list[Feed], progress: Progress) -> None:
        self._feeds = iter(feeds)
        self._count = len(feeds)
        self._given = 0
        self._progress = progress

    def get_next(self) -> Feed | None:
        self._progress("calibrating", self._given / self._count)
        self._given += 1
        return next(self._feeds, None)


def _feeds(model: onnx.ModelProto, source: Path, calibration: Path) -> Iterator[Feed]:
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in initializers}
    if "input_ids" in inputs and any(name.startswith(PAST) for name in inputs):
        return _text_feeds(inputs, source, calibration)
    return _array_feeds(inputs, calibration)


def _text_feeds(inputs: dict[str, Any], source: Path, calibration: Path) -> Iterator[Feed]:
    """Yield windows of a text, each with an empty cache."""
    files = {
        path.name: path
        for folder in folders_of(source)
        for path in folder.iterdir()
        if path.is_file()
    }
    tokens = np.array(TextTokenizer(files).encode(read_text(calibration)), dtype=np.int64)
    starts = range(0, len(tokens) - WINDOW_TOKENS + 1, WINDOW_TOKENS)
    if not starts:
        raise QuantizeError(
            f"{calibration} has {len(tokens)} tokens; calibrating needs {WINDOW_TOKENS}",
            advice="Give a longer text.",
        )
    empty = {
        name: np.zeros((1, _dims(value)[1].dim_value, 0, _dims(value)[3].dim_value), _dtype(value))
        for name, value in inputs.items()
        if name.startswith(PAST)
    }
    for start in starts[:MAX_WINDOWS]:
        window = tokens[None, start : start + WINDOW_TOKENS]
        given = {
            "input_ids": window,
            "attention_mask": np.ones_like(window),
            "position_ids": np.arange(window.shape[1], dtype=np.int64)[None],
        }
        yield {name: given[name] for name in inputs if name in given} | empty


def _array_feeds(inputs: dict[str, Any], calibration: Path) -> Iterator[Feed]:
    """Yield rows of inputs by name, in batches of the size that the model fixes, else of 32."""
    arrays = _arrays(calibration)
    rows = min((len(arrays[name]) for name in inputs if name in arrays), default=0)
    if set(inputs) - set(arrays) or rows == 0:
        raise QuantizeError(
            f"{calibration} has the arrays {', '.join(sorted(arrays)) or 'none'}",
            advice=f"Give rows of {', '.join(sorted(inputs))}.",
        )
    # 0: the first dimension is free.
    fixed = max((_dims(value)[0].dim_value for value in inputs.values() if _dims(value)), default=0)
    step = fixed or min(rows, _BATCH_ROWS)
    # A last batch that is not full is left out: the first dimension may be fixed.
    for start in range(0, min(rows, MAX_ROWS) - step + 1, step):
        yield {
            name: arrays[name][start : start + step].astype(_dtype(value))
            for name, value in inputs.items()
        }


def _arrays(calibration: Path) -> Feed:
    """Read an .npz, or lines of JSON with one row of every input each."""
    data = read_calibration(calibration)
    if calibration.suffix != JSON_LINES:
        return read_arrays(calibration, data, QuantizeError)
    lines = read_lines(calibration, data, dict[str, Any])[:MAX_ROWS]
    try:
        return {name: np.array([line[name] for line in lines], np.float32) for name in lines[0]}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise QuantizeError(
            f"the lines of {calibration} differ in their inputs or shapes: {error!r}",
            advice="Give every line the same inputs, as lists of numbers of one shape.",
        ) from error


def _dims(value: Any) -> Any:
    return value.type.tensor_type.shape.dim


def _dtype(value: Any) -> Any:
    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
