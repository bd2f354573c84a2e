"""Convert tensors between wire form and NumPy arrays.

Engines and builds import this module; the agent's daemon must not, because NumPy costs memory.
"""

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
    """Return a checked tensor as an array that shares its bytes."""
    return np.frombuffer(value.data, dtype=DTYPES[value.datatype]).reshape(value.shape)


def to_value(name: str, array: NDArray[Any]) -> TensorValue:
    """Return an array in wire form; raise UnsupportedModelError if the protocol lacks its type."""
    datatype = _DATATYPES.get(array.dtype)
    if datatype is None:
        raise UnsupportedModelError(
            f"the tensor {name!r} has the type {array.dtype}, which the protocol cannot carry",
            advice="Export the model with numeric tensors.",
        )
    # Outputs may be views with strides; the protocol's data are row-major.
    return TensorValue(name, datatype, array.shape, np.ascontiguousarray(array).tobytes())


def read_arrays(path: Path, data: bytes, error: type[RuntimeFault]) -> dict[str, NDArray[Any]]:
    """Return the arrays in the bytes of an .npz file, by name; raise ``error`` if it is invalid."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile) as problem:
        # np.load returns a bare array for an .npy file, which is no context manager: TypeError.
        raise error(
            f"{path} is not an .npz file of numeric arrays: {problem}",
            advice="Write it with numpy.savez, one array for each input of the model.",
        ) from problem
