"""Convert tensors between the Open Inference Protocol's JSON numbers and the engines' bytes.

Uses ``struct`` because the daemon does not load numpy.
"""

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from agent.errors import ModelRefusedError
from artifact.manifest import Tensor
from runtimes.base import TensorSpec, TensorValue

# Open Inference Protocol datatypes to struct's format characters.
FORMATS: Final = {
    "BOOL": "?",
    "INT8": "b",
    "UINT8": "B",
    "INT16": "h",
    "UINT16": "H",
    "INT32": "i",
    "UINT32": "I",
    "INT64": "q",
    "UINT64": "Q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
MAX_ELEMENTS: Final = 1 << 22
MAX_RANK: Final = 8


def pack(name: str, datatype: str, shape: Sequence[int], values: Iterable[Any]) -> TensorValue:
    """Build a tensor from flat or nested row-major numbers.

    Raises ModelRefusedError if shape, datatype and values do not fit together.
    """
    code = _code(name, datatype)
    # Checked before the values are flattened: the shape bounds the work.
    count = _elements(name, shape)
    flat = list(_flatten(values, MAX_RANK))
    if len(flat) != count:
        raise ModelRefusedError(
            f"tensor {name[:128]!a} of shape {list(shape)} needs {count} values, not {len(flat)}"
        )
    try:
        data = struct.pack(f"<{count}{code}", *flat)
    except (struct.error, OverflowError) as error:
        raise ModelRefusedError(
            f"tensor {name[:128]!a} has a value that is not {datatype}: {error}"
        ) from error
    return TensorValue(name, datatype, tuple(shape), data)


def check_size(name: str, datatype: str, shape: Sequence[int], size: int) -> None:
    """Raise ModelRefusedError unless a tensor of this shape has ``size`` bytes."""
    needed = _elements(name, shape) * struct.calcsize(f"<{_code(name, datatype)}")
    if size != needed:
        raise ModelRefusedError(
            f"tensor {name[:128]!a} of shape {list(shape)} needs {needed} bytes, not {size}"
        )


def numbers(tensor: TensorValue) -> list[Any]:
    """Return a tensor's values, flat and row-major.

    Raises ModelRefusedError for a datatype that JSON cannot represent.
    """
    code = FORMATS.get(tensor.datatype)
    if code is None:
        raise ModelRefusedError(
            f"output {tensor.name!a} is {tensor.datatype}, which JSON cannot represent",
            unsupported=True,
        )
    count = len(tensor.data) // struct.calcsize(f"<{code}")
    return list(struct.unpack(f"<{count}{code}", tensor.data))


def from_manifest(tensor: Tensor) -> TensorValue:
    """Convert a manifest's tensor for an engine; its values become integers for integer types."""
    values: Iterable[float] = tensor.data
    if not tensor.datatype.startswith("FP"):
        try:
            values = [int(value) for value in tensor.data]
        except (ValueError, OverflowError) as error:
            raise ModelRefusedError(
                f"tensor {tensor.name!a} has a value that is not an integer: {error}"
            ) from error
    return pack(tensor.name, tensor.datatype, tensor.shape, values)


def synthetic(spec: TensorSpec, known_shape: Sequence[int] | None = None) -> TensorValue:
    """Return a tensor of zeros for a declared input; unless known, free dimensions are 1."""
    shape = tuple(known_shape or (1 if size < 0 else size for size in spec.shape))
    return pack(spec.name, spec.datatype, shape, [0] * math.prod(shape))


def _code(name: str, datatype: str) -> str:
    code = FORMATS.get(datatype)
    if code is None:
        raise ModelRefusedError(
            f"tensor {name[:128]!a} has the unknown datatype {datatype[:32]!a}",
            advice=f"Use one of: {', '.join(FORMATS)}.",
        )
    return code


def _elements(name: str, shape: Sequence[int]) -> int:
    if len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise ModelRefusedError(f"tensor {name[:128]!a} has the impossible shape {list(shape)}")
    count = math.prod(shape)
    if count > MAX_ELEMENTS:
        raise ModelRefusedError(
            f"tensor {name[:128]!a} has {count:,} values; the maximum is {MAX_ELEMENTS:,}",
            advice="Split it over several requests.",
        )
    return count


def _flatten(values: Iterable[Any], depth: int) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            if depth == 0:
                raise ModelRefusedError(f"tensor data is nested deeper than {MAX_RANK} levels")
            yield from _flatten(value, depth - 1)
        else:
            yield value
