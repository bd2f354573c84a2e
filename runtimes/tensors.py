"""Tensors of the Open Inference Protocol: datatypes, and checks of inputs.

https://github.com/open-inference/open-inference-protocol, "Tensor Data Types".
"""

import math
from collections.abc import Sequence
from typing import Final

from runtimes.base import TensorSpec, TensorValue
from runtimes.errors import InvalidInputError

MAX_DIMENSIONS = 8
MAX_TENSOR_BYTES = 256 << 20

DATATYPE_BYTES: Final = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
}


def check_inputs(inputs: Sequence[TensorValue], declared: Sequence[TensorSpec]) -> None:
    """Raise InvalidInputError unless the inputs are exactly those that the model declares."""
    names = [value.name for value in inputs]
    expected = {spec.name: spec for spec in declared}
    if sorted(names) != sorted(expected):
        raise InvalidInputError(
            f"the request has the inputs {_listed(names)}",
            advice=f"Send exactly {_listed(list(expected))}.",
        )
    for value in inputs:
        _check_input(value, expected[value.name])


def _check_input(value: TensorValue, spec: TensorSpec) -> None:
    if value.datatype != spec.datatype:
        raise InvalidInputError(
            f"input {spec.name!r} has the datatype {value.datatype[:16]!r}",
            advice=f"Send it as {spec.datatype}.",
        )
    fits = len(value.shape) == len(spec.shape) and all(
        size == wanted or (wanted == -1 and size >= 0)
        for size, wanted in zip(value.shape, spec.shape, strict=True)
    )
    if not fits:
        raise InvalidInputError(
            f"input {spec.name!r} has the shape {list(value.shape[: MAX_DIMENSIONS + 1])}",
            advice=f"Send the shape {list(spec.shape)}, where -1 is any size.",
        )
    size = math.prod(value.shape) * DATATYPE_BYTES[spec.datatype]
    # Engines build arrays over these bytes without a copy, so that the length must be exact.
    if size > MAX_TENSOR_BYTES or len(value.data) != size:
        raise InvalidInputError(
            f"input {spec.name!r} has {len(value.data):,} bytes; its shape {list(value.shape)} "
            f"needs {size:,}",
            advice=f"Send row-major data of at most {MAX_TENSOR_BYTES:,} bytes.",
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:128]) for name in sorted(names)[:16]) or "none"
