"""An importance matrix: the mean square of each weight column's input.

llama.cpp's quantizers keep the errors of important columns small. Per weight it is the mean square
of the activations that the weight multiplies while the model reads a text, as llama.cpp's own
`llama-imatrix` measures it: https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix.
Weights of experts (MUL_MAT_ID) have none.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any, Final

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from runtimes.base import Progress
from runtimes.errors import QuantizeError
from runtimes.llama_cpp.limits import MAX_OUTPUTS
from runtimes.llama_cpp.native import Model
from runtimes.processor.threads import compute_threads
from runtimes.quantizing import read_text

# llama-imatrix's window; longer ones change little.
_WINDOW_TOKENS: Final = 512
_MIN_TOKENS: Final = 64
_F32: Final = 0
_F32_BYTES: Final = 4


class _Tensor(ctypes.Structure):
    """The beginning of struct ggml_tensor (ggml.h); _Collector checks the layout."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("lengths", ctypes.c_int64 * 4),
        ("strides", ctypes.c_size_t * 4),
        ("operator", ctypes.c_int),
        ("parameters", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("sources", ctypes.c_void_p * 10),
        ("viewed", ctypes.c_void_p),
        ("view_offset", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


@functools.cache
def _ggml() -> Any:
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_get_name.restype = ctypes.c_void_p
    library.ggml_get_name.argtypes = [ctypes.c_void_p]
    library.ggml_op_desc.restype = ctypes.c_char_p
    library.ggml_op_desc.argtypes = [ctypes.c_void_p]
    library.ggml_backend_tensor_get.restype = None
    library.ggml_backend_tensor_get.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
    ]
    return library


class _Collector:
    """Callback of llama.cpp for every operation of a pass, before it (to select) and after it."""

    def __init__(self) -> None:
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, int] = {}
        self.unknown_layout = False
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._on_operation)

    def _on_operation(self, address: int, ask: bool, _: Any) -> bool:
        # If the struct's layout changed in a new version, ``name`` lies elsewhere: read nothing.
        if _ggml().ggml_get_name(address) != address + _Tensor.name.offset:
            self.unknown_layout = True
            return not ask
        if _ggml().ggml_op_desc(address) != b"MUL_MAT":
            return not ask
        weight_at, input_at = _Tensor.from_address(address).sources[:2]
        weight, values = _Tensor.from_address(weight_at), _Tensor.from_address(input_at)
        columns, *rows = values.lengths
        plain = values.type == _F32 and values.strides[1] == columns * _F32_BYTES
        if not plain or not weight.name.endswith(b".weight"):
            return not ask
        if not ask:
            array = np.empty((int(np.prod(rows)), columns), dtype=np.float32)
            _ggml().ggml_backend_tensor_get(input_at, array.ctypes.data, 0, array.nbytes)
            self._add(weight.name.decode(errors="replace"), array)
        return True

    def _add(self, name: str, values: NDArray[np.float32]) -> None:
        squares = np.square(values, dtype=np.float64).sum(axis=0)
        self.sums[name] = self.sums.get(name, 0.0) + squares
        self.counts[name] = self.counts.get(name, 0) + len(values)


def measure_importance(
    source: Path, text: Path, progress: Progress
) -> dict[str, NDArray[np.float32]]:
    """Return the importance matrix of a GGUF model by weight name; raises QuantizeError."""
    collector = _Collector()
    threads = compute_threads()
    # 0: the context of the model's training, if that is shorter.
    model = Model(source, 0, threads, collector.callback)
    try:
        tokens = model.tokenize(read_text(text))
        window = min(_WINDOW_TOKENS, model.context_length)
        if len(tokens) < _MIN_TOKENS:
            raise QuantizeError(
                f"{text} has {len(tokens)} tokens; calibration needs at least {_MIN_TOKENS}",
                advice="Give a longer text; tens of thousands of tokens are usual.",
            )
        for start in range(0, len(tokens), MAX_OUTPUTS):
            progress("measuring importance", start / len(tokens))
            if start % window == 0:
                model.forget()
            # The last layer computes only positions whose logits are requested, so request all.
            model.decode(tokens[start : start + MAX_OUTPUTS], all_logits=True)
    finally:
        model.close()
    if collector.unknown_layout or not collector.sums:
        raise QuantizeError(
            f"llama.cpp did not expose the activations of {source.name}",
            advice="Quantize without calibration.",
        )
    progress("measuring importance", 1.0)
    return {
        name: (total / collector.counts[name]).astype(np.float32)
        for name, total in collector.sums.items()
    }
