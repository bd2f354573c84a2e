"""Search for weights of a GGUF model that are NaN or infinite."""

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from runtimes.errors import BuildError
from runtimes.llama_cpp.inspect import GgufInspector

_CHUNK_VALUES: Final = 1 << 22
# By stored type: the type of the bits, and the mask of the exponent, whose bits are all set in
# values that are not finite (IEEE 754; bfloat16 is the upper half of a float32).
_EXPONENTS: Final[dict[str, tuple[Any, int]]] = {
    "f32": (np.dtype("<u4"), 0x7F80_0000),
    "f16": (np.dtype("<u2"), 0x7C00),
    "bf16": (np.dtype("<u2"), 0x7F80),
}


def check_finite(path: Path) -> None:
    """Raise BuildError if a floating-point weight is NaN or infinite.

    One such row of a table makes NaN of every text that uses it, which a trial on other texts does
    not notice. Quantized weights are not searched; a trial compares their outputs.
    """
    for tensor in GgufInspector().inspect(path).tensors:
        if tensor.type not in _EXPONENTS:
            continue
        dtype, mask = _EXPONENTS[tensor.type]
        values: NDArray[Any] = np.memmap(
            path, dtype, "r", tensor.offset, (tensor.size // dtype.itemsize,)
        )
        count = sum(
            int(((values[start : start + _CHUNK_VALUES] & mask) == mask).sum())
            for start in range(0, len(values), _CHUNK_VALUES)
        )
        if count:
            raise BuildError(
                f"{count} of {len(values)} values of {tensor.name!a} are NaN or infinite",
                advice="Export the model again; mask unused rows with large finite values.",
            )
