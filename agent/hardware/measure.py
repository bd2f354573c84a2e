"""Micro-benchmark of memory, arithmetic and storage.

``python -m agent.hardware.measure DIRECTORY CORES MEMORY_BYTES ROUNDS`` runs in a separate process:
numpy and the engines would stay in the daemon's memory, and a faulty native library ends this
process instead of the daemon. It writes a MicroBenchmark as a line of JSON after each step, so that
a crash loses only the later figures.

All figures are measured in several rounds, so that a disturbance of a second affects one round of
every figure instead of all runs of one. A figure is the upper quartile of its runs: the rate with
little disturbance, less sensitive to outliers than the best run. Its spread is reported with it.
"""

import ctypes
import importlib
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec

from artifact.device_facts import MicroBenchmark

# All figures that are not the rate of one kernel.
PLAIN: Final = frozenset({"memory", "matrices", "storage", "int8"})
# Per figure and round: at least LEAST_RUNS, then more until FIGURE_SECONDS or MOST_RUNS.
LEAST_RUNS: Final = 3
MOST_RUNS: Final = 30
FIGURE_SECONDS: Final = 0.15
# Kernels that have not started after this time are skipped.
KERNELS_SECONDS: Final = 10.0
MATRIX_SIZE: Final = 1024
FILE_BYTES: Final = 64 << 20
BLOCK_BYTES: Final = 1 << 20
LEAST_AREA_BYTES: Final = 32 << 20
MOST_AREA_BYTES: Final = 256 << 20
# A product with this many vectors (a prompt of this many tokens) is bound by arithmetic.
INT8_VECTORS: Final = 64
INT8_BYTES: Final = 4 << 20


class Rates:
    """The measured rates per second, by figure."""

    def __init__(self) -> None:
        self._runs: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, figure: str, work: float, run: Callable[[], object]) -> None:
        """Time several runs that each do ``work`` units, after one warm-up run."""
        run()
        began = time.perf_counter()
        for count in range(MOST_RUNS):
            if count >= LEAST_RUNS and time.perf_counter() - began > FIGURE_SECONDS:
                break
            started = time.perf_counter()
            run()
            self._runs[figure].append(work / (time.perf_counter() - started))

    def __getitem__(self, figure: str) -> float:
        """Return the upper quartile of a figure; 0 if it was not measured."""
        return self._quartiles(figure)[2]

    def spreads(self) -> dict[str, float]:
        """Return half of the interquartile range over the median, by figure."""
        found = {figure: self._quartiles(figure) for figure in self._runs}
        return {figure: (high - low) / 2 / mid for figure, (low, mid, high) in found.items()}

    def _quartiles(self, figure: str) -> tuple[float, float, float]:
        runs = self._runs.get(figure, [])
        if len(runs) < 2:  # noqa: PLR2004 - quartiles need two
            return (runs[0],) * 3 if runs else (0.0,) * 3
        low, middle, high = statistics.quantiles(runs, n=4, method="inclusive")
        return low, middle, high

    def result(self) -> MicroBenchmark:
        """Return all figures; those of kernels are in ``weight_bytes_per_second``."""
        return MicroBenchmark(
            memory_bytes_per_second=self["memory"],
            matmul_flops_per_second=self["matrices"],
            storage_bytes_per_second=self["storage"],
            int8_operations_per_second=self["int8"],
            weight_bytes_per_second={
                figure: self[figure] for figure in self._runs if figure not in PLAIN
            },
            spreads=self.spreads(),
        )


def area_bytes(memory_bytes: int, root: Path = Path("/")) -> int:
    """Return the size of the area to measure in bytes.

    Twice the largest cache, so that no run finds the area cached; at most an eighth of the memory.
    """
    largest = 0
    for path in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            largest = max(largest, int(text[:-1]) << 10)
    wanted = min(MOST_AREA_BYTES, max(LEAST_AREA_BYTES, 2 * largest))
    return min(wanted, memory_bytes // 8) if memory_bytes else wanted


def measure_memory(rates: Rates, cores: int, area: int) -> None:
    """Measure bytes read plus written while every core copies, as STREAM's copy counts them."""
    # ctypes releases the interpreter's lock during memmove, so the threads run in parallel.
    share = area // cores // 2
    areas = [(bytearray(share), bytearray(share)) for _ in range(cores)]
    pairs = [
        ((ctypes.c_char * share).from_buffer(target), (ctypes.c_char * share).from_buffer(source))
        for target, source in areas
    ]

    def copy(pair: tuple[ctypes.Array[ctypes.c_char], ctypes.Array[ctypes.c_char]]) -> None:
        ctypes.memmove(pair[0], pair[1], share)

    with ThreadPoolExecutor(cores) as pool:
        rates.add("memory", 2 * share * cores, lambda: list(pool.map(copy, pairs)))


def measure_matrices(rates: Rates) -> None:
    """Measure the floating point operations of a float32 matrix product; skipped without numpy."""
    try:
        import numpy as np
    except ImportError:
        return
    generator = np.random.default_rng(0)
    left, right = (generator.random((MATRIX_SIZE, MATRIX_SIZE), dtype=np.float32) for _ in range(2))
    rates.add("matrices", 2 * MATRIX_SIZE**3, lambda: left @ right)


def measure_storage(rates: Rates, directory: Path) -> None:
    """Measure reading a file that is not in the page cache; skipped without disk space for it."""
    block = os.urandom(BLOCK_BYTES)
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            for _ in range(FILE_BYTES // BLOCK_BYTES):
                file.write(block)
            os.fsync(file.fileno())

            def read() -> None:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                file.seek(0)
                while file.read(BLOCK_BYTES):
                    pass

            rates.add("storage", FILE_BYTES, read)
    except OSError as error:
        print(f"storage not measured: {error}", file=sys.stderr)  # noqa: T201 - the parent logs it


def measure_kernels(rates: Rates, kernels: Any, cores: int, area: int, deadline: float) -> None:
    """Measure the weight bytes that each kernel reads and multiplies, and int8 arithmetic."""
    engine = kernels.Kernels()
    with engine.product("q8_0", INT8_BYTES, cores, INT8_VECTORS) as product:
        # A weight costs a multiplication and an addition per vector.
        rates.add("int8", 2 * INT8_VECTORS * product.weights, product.run)
    for kind in kernels.TYPES:
        if time.perf_counter() > deadline:
            return
        with engine.product(kind, area, cores) as product:
            rates.add(kind, product.weight_bytes, product.run)


def partial_results(
    directory: Path, cores: int, memory_bytes: int, rounds: int
) -> Iterator[MicroBenchmark]:
    """Yield all figures measured so far after each step."""
    area = area_bytes(memory_bytes)
    rates = Rates()
    measure_storage(rates, directory)
    kernels: Any = None
    deadline = time.perf_counter() + KERNELS_SECONDS
    for _ in range(rounds):
        measure_memory(rates, cores, area)
        measure_matrices(rates)
        yield rates.result()
        try:
            kernels = kernels or importlib.import_module("runtimes.llama_cpp.kernels")
            measure_kernels(rates, kernels, cores, area, deadline)
        except (ImportError, OSError, AttributeError, MemoryError) as error:
            # No engine, or a version with another interface: predictions use the memory rate.
            print(f"kernels not measured: {error}", file=sys.stderr)  # noqa: T201 - the parent logs it
            yield rates.result()
            return
        yield rates.result()


def main() -> None:
    """Write one MicroBenchmark per line; the last is the most complete."""
    numbers = [int(text) for text in sys.argv[2:]]
    for result in partial_results(Path(sys.argv[1]), *numbers):
        sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
