"""Speed of llama.cpp's own kernels on this machine: quantized weights times vectors.

Times one vector is the work of decoding a token, so its rate, on weights larger than any cache,
bounds a model's speed; times many vectors is the work of prefill. The interface is ggml's C
functions, verified with a known product first. The engine's library is loaded here: never import
this in the daemon.
"""

import ctypes
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from runtimes.environment import in_large_pages

# Numbers of ggml_type; the longest name that is a prefix of a scheme is its kernel.
TYPES: Final = {
    "f32": 0,
    "f16": 1,
    "bf16": 30,
    "q8_0": 8,
    "q6_k": 14,
    "q5_k": 13,
    "q5_0": 6,
    "q4_k": 12,
    "q4_0": 2,
    "iq4_xs": 23,
    "iq4": 20,
    "q3_k": 11,
    "iq3_xxs": 18,
    "iq3": 21,
    "q2_k": 10,
    "iq2": 22,
}
# Columns of a row: a common width of models, and a multiple of every block.
COLUMNS: Final = 4096
# A byte valid as scale and as index in every format; zero pages would not be allocated.
FILLING: Final = 0x11
# Memory beside the weights: bookkeeping and the vectors.
SLACK_BYTES: Final = 4 << 20
# Working memory of a run: graph, products, and a buffer per thread. Hardly touched.
RUN_BYTES: Final = 8 << 20
RUN_BYTES_PER_THREAD: Final = 1 << 20


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix times vectors. ``run`` multiplies once, on its number of threads."""

    run: Callable[[], object]
    weight_bytes: int
    weights: int


class Kernels:
    """ggml's functions; raises OSError or AttributeError if the library is missing or different."""

    def __init__(self) -> None:
        spec = find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            raise OSError("llama-cpp-python is not installed")
        folder = Path(spec.origin).parent / "lib"
        self._base: Any = ctypes.CDLL(str(folder / "libggml-base.so"))
        self._cpu: Any = ctypes.CDLL(str(folder / "libggml-cpu.so"))
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        for name, result, arguments in (
            ("ggml_init", pointer, (_InitParams,)),
            ("ggml_free", None, (pointer,)),
            ("ggml_row_size", ctypes.c_size_t, (ctypes.c_int, number)),
            ("ggml_new_tensor_2d", pointer, (pointer, ctypes.c_int, number, number)),
            ("ggml_mul_mat", pointer, (pointer, pointer, pointer)),
            ("ggml_new_graph", pointer, (pointer,)),
            ("ggml_build_forward_expand", None, (pointer, pointer)),
            ("ggml_get_data", pointer, (pointer,)),
        ):
            function = getattr(self._base, name)
            function.restype, function.argtypes = result, arguments
        compute = self._cpu.ggml_graph_compute_with_ctx
        compute.restype, compute.argtypes = ctypes.c_int, (pointer, pointer, ctypes.c_int)
        self._cpu.ggml_cpu_init()
        if abs(self._known_product() - 1) > 1e-3:  # noqa: PLR2004 - float32 over 4096 terms
            raise OSError("the library's product differs from the known one")

    @contextmanager
    def product(
        self, kind: str, area_bytes: int, threads: int, vectors: int = 1
    ) -> Iterator[Product]:
        """Provide a product with about ``area_bytes`` of weights of this kind."""
        row_bytes = self._base.ggml_row_size(TYPES[kind], COLUMNS)
        rows = max(1, area_bytes // row_bytes)
        with self._factors(kind, rows, vectors) as factors, self._multiplying(threads) as multiply:
            ctypes.memset(self._base.ggml_get_data(factors[0]), FILLING, rows * row_bytes)
            yield Product(lambda: multiply(*factors), rows * row_bytes, rows * COLUMNS)

    @contextmanager
    def _factors(self, kind: str, rows: int, vectors: int) -> Iterator[tuple[int, int]]:
        """Provide a matrix of weights, and vectors of ones."""
        base = self._base
        size = rows * base.ggml_row_size(TYPES[kind], COLUMNS) + SLACK_BYTES
        with _memory(size) as address:
            context = base.ggml_init(_InitParams(size, address, False))
            weights = base.ggml_new_tensor_2d(context, TYPES[kind], COLUMNS, rows)
            vector = base.ggml_new_tensor_2d(context, 0, COLUMNS, vectors)
            count = COLUMNS * vectors
            ones = (ctypes.c_float * count)(*[1.0] * count)
            ctypes.memmove(base.ggml_get_data(vector), ones, ctypes.sizeof(ones))
            try:
                yield weights, vector
            finally:
                base.ggml_free(context)

    @contextmanager
    def _multiplying(self, threads: int) -> Iterator[Callable[[int, int], float]]:
        """Provide a function that multiplies factors and returns the first value.

        Every run uses the same memory at the same address: some kernels take 50 % longer with badly
        aligned operands.
        """
        base = self._base
        size = RUN_BYTES + threads * RUN_BYTES_PER_THREAD
        with _memory(size) as address:

            def multiply(weights: int, vector: int) -> float:
                context = base.ggml_init(_InitParams(size, address, False))
                try:
                    product = base.ggml_mul_mat(context, weights, vector)
                    graph = base.ggml_new_graph(context)
                    base.ggml_build_forward_expand(graph, product)
                    if self._cpu.ggml_graph_compute_with_ctx(context, graph, threads) != 0:
                        raise OSError("the library failed to multiply")
                    return ctypes.c_float.from_address(base.ggml_get_data(product)).value
                finally:
                    base.ggml_free(context)

            yield multiply

    def _known_product(self) -> float:
        """Multiply one row of COLUMNS times 1 / COLUMNS by ones; the result is 1."""
        with self._factors("f32", 1, 1) as factors, self._multiplying(1) as multiply:
            row = (ctypes.c_float * COLUMNS)(*[1.0 / COLUMNS] * COLUMNS)
            ctypes.memmove(self._base.ggml_get_data(factors[0]), row, ctypes.sizeof(row))
            return multiply(*factors)


@contextmanager
def _memory(size: int) -> Iterator[int]:
    """Map memory and yield its address; raises OSError, where ggml would end the process."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        if in_large_pages():
            # As malloc does for the engine's weights, where transparent huge pages are enabled.
            with suppress(OSError, AttributeError):
                memory.madvise(mmap.MADV_HUGEPAGE)
        first = ctypes.c_char.from_buffer(memory)
        try:
            yield ctypes.addressof(first)
        finally:
            # Or unmapping failed.
            del first
