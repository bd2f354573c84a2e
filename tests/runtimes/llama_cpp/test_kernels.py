"""Measuring the engine's kernels, in processes of their own, as the micro-benchmark does."""

import subprocess
import sys

import pytest

# More than this machine has cores: what each takes of memory is what a larger box would see.
MANY_THREADS = 16
MANY_RUNS = 40
PROGRAM = """
import sys
from runtimes.llama_cpp import kernels

kind, threads, runs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with kernels.Kernels().product(kind, 1 << 20, threads, 4) as product:
    assert 0 < product.weight_bytes <= 1 << 20
    for _ in range(runs):
        product.run()
print("measured")
"""


@pytest.mark.parametrize("kind", ["f32", "q8_0", "q4_k", "iq2"])
def test_no_number_of_runs_and_threads_is_too_many(kind: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind, str(MANY_THREADS), str(MANY_RUNS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (0, "measured\n"), result.stderr
