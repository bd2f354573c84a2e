"""Tensors in flight as NumPy arrays, and back; for engines, not for the daemon."""

import io
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from runtimes.base import TensorValue
from runtimes.errors import RuntimeFault, UnsupportedModelError

DTYPES: Final[dict[str, Any]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
_DATATYPES: Final = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def to_array(value: TensorValue) -> NDArray[Any]:
    """A checked tensor as an array over the same bytes."""
    return np.frombuffer(value.data, dtype=DTYPES[value.datatype]).reshape(value.shape)


def to_value(name: str, array: NDArray[Any]) -> TensorValue:
    """An array as a tensor in flight; UnsupportedModelError for a type that none can carry."""
    datatype = _DATATYPES.get(array.dtype)
    if datatype is None:
        raise UnsupportedModelError(
            f"{name!r} has the type {array.dtype}",
            advice="Export the model with tensors of plain numbers.",
        )
    return TensorValue(name, datatype, array.shape, np.ascontiguousarray(array).tobytes())


def read_arrays(path: Path, data: bytes, error: type[RuntimeFault]) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file by name, out of its bytes; ``error`` when it is none."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile) as problem:
        # TypeError: of a plain .npy it gives an array instead.
        raise error(
            f"{path} is no .npz file of plain arrays: {problem}",
            advice="Write it with numpy.savez: the model's inputs by name.",
        ) from problem
