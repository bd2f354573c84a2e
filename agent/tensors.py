"""Tensors between the Open Inference Protocol's JSON numbers and the bytes that engines take.

Without numpy, which the daemon does not load.
"""

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from agent.errors import ModelRefusedError
from artifact.manifest import Tensor
from runtimes.base import TensorSpec, TensorValue

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
    """A tensor from flat or nested row-major numbers; ModelRefusedError when they do not fit."""
    code = _code(name, datatype)
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
            f"tensor {name[:128]!a} holds a value that is no {datatype}: {error}"
        ) from error
    return TensorValue(name, datatype, tuple(shape), data)


def check_size(name: str, datatype: str, shape: Sequence[int], size: int) -> None:
    """ModelRefusedError unless a tensor takes so many bytes."""
    needed = _elements(name, shape) * struct.calcsize(f"<{_code(name, datatype)}")
    if size != needed:
        raise ModelRefusedError(
            f"tensor {name[:128]!a} of shape {list(shape)} needs {needed} bytes, not {size}"
        )


def numbers(tensor: TensorValue) -> list[Any]:
    """A tensor's values, flat and row-major; ModelRefusedError for a datatype JSON cannot carry."""
    code = FORMATS.get(tensor.datatype)
    if code is None:
        raise ModelRefusedError(
            f"output {tensor.name!a} is {tensor.datatype}, which JSON cannot carry",
            unsupported=True,
        )
    count = len(tensor.data) // struct.calcsize(f"<{code}")
    return list(struct.unpack(f"<{count}{code}", tensor.data))


def from_manifest(tensor: Tensor) -> TensorValue:
    """A manifest's tensor as an engine takes it; whole numbers for whole-number datatypes."""
    values: Iterable[float] = tensor.data
    if not tensor.datatype.startswith("FP"):
        try:
            values = [int(value) for value in tensor.data]
        except (ValueError, OverflowError) as error:
            raise ModelRefusedError(f"tensor {tensor.name!a} holds no number: {error}") from error
    return pack(tensor.name, tensor.datatype, tensor.shape, values)


def synthetic(spec: TensorSpec) -> TensorValue:
    """A tensor of zeros that a declared input takes; free dimensions are 1."""
    shape = tuple(1 if size < 0 else size for size in spec.shape)
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
            f"tensor {name[:128]!a} has {count} values, more than {MAX_ELEMENTS}",
            advice="Send it in several requests.",
        )
    return count


def _flatten(values: Iterable[Any], depth: int) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            if depth == 0:
                raise ModelRefusedError(f"tensor data is nested deeper than {MAX_RANK}")
            yield from _flatten(value, depth - 1)
        else:
            yield value
