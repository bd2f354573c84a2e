"""Benchmark of the engine's kernels in separate processes, like the micro-benchmark."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runtimes.environment import LARGE_PAGES

# More threads than cores, to measure the memory per thread of a larger device.
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


ADVISED = """
from pathlib import Path
from runtimes.llama_cpp import kernels

with kernels._memory(8 << 20):
    print(Path("/proc/self/smaps").read_text())
"""


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without large pages"
)
@pytest.mark.parametrize("large", [True, False])
def test_kernels_are_measured_in_pages_as_the_engines_weights_have_them(*, large: bool) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in LARGE_PAGES}
    smaps = subprocess.run(
        [sys.executable, "-c", ADVISED],
        env=environment | (LARGE_PAGES if large else {}),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    # The kernel may merge mappings; the flag ``hg`` marks requested huge pages.
    sizes_and_flags = re.findall(r"^Size: +(\d+) kB$.*?^VmFlags: ([^\n]*)$", smaps, re.M | re.S)
    asked = [int(size) for size, flags in sizes_and_flags if "hg" in flags.split()]
    assert (max(asked, default=0) >= 8 << 10) is large
