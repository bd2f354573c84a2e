"""The number of threads that models compute with: the one decision for measuring and for serving.

A thread more than there are cores for it slows a model down: all threads of a matrix product wait
for the slowest. Hence one thread per physical core, since two threads of a core share its vector
units; no efficiency cores beside performance cores; and no more than the CPU quota of the cgroup,
which would otherwise stop all threads in the middle of each period.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from runtimes.processor.cgroup import cpu_quota

MAX_READ_BYTES: Final = 4096
MAX_CPUS: Final = 4096
CPUS: Final = "sys/devices/system/cpu"
# Cores with less than this share of the largest capacity or clock are efficiency cores.
FAST_SHARE: Final = 2 / 3
# Threads of a small model spend more time waiting for each other than computing. Measured with a
# 3 MB model: one thread was as fast as two on two idle cores, and hundreds of times faster on
# busy ones.
SINGLE_THREAD_BYTES: Final = 8 << 20
# All large models of a release together have at most this many threads per core. Two models may
# each use all cores, as they are seldom busy at the same time; with more, each gets fewer.
MOST_THREADS_PER_CORE: Final = 2


def compute_threads(root: Path = Path("/"), affinity: Iterable[int] | None = None) -> int:
    """Return the number of threads for one large model on this box, at least 1.

    ``root`` is the directory of /proc and /sys; ``affinity`` the CPUs that this process may use,
    by default those that the kernel reports.
    """
    allowed = os.sched_getaffinity(0) if affinity is None else set(affinity)
    fast = _fast_cpus(root, allowed)
    cores = len({_core(root, cpu) for cpu in fast})
    quota = cpu_quota(root)
    return max(1, min(cores, int(quota)) if quota else cores)


def threads_for_model(threads: int, size_bytes: int, large_models: int = 1) -> int:
    """Return the threads of one model of ``size_bytes`` in a release of ``large_models``.

    ``threads`` is the result of ``compute_threads``.
    """
    if is_small(size_bytes):
        return 1
    share = MOST_THREADS_PER_CORE * threads // max(large_models, 1)
    return max(1, min(threads, share))


def is_small(size_bytes: int) -> bool:
    """Return True if a model of this size computes with one thread."""
    return size_bytes < SINGLE_THREAD_BYTES


def _fast_cpus(root: Path, allowed: set[int]) -> set[int]:
    """Return the performance cores among the allowed CPUs; all if they are of one kind."""
    # Intel's hybrid processors list both kinds; Arm's report a capacity, others only a clock.
    performance = _cpu_list(_text(root / "sys/devices/cpu_core/cpus"))
    if performance & allowed:
        return performance & allowed
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        speeds = {cpu: _number(root / CPUS / f"cpu{cpu}" / name) for cpu in allowed}
        highest = max(speeds.values(), default=0)
        if highest and all(speeds.values()):
            return {cpu for cpu, speed in speeds.items() if speed >= FAST_SHARE * highest}
    return allowed


def _core(root: Path, cpu: int) -> tuple[int, int]:
    """Return the package and core of a CPU; a core of its own if the kernel does not report it."""
    topology = root / CPUS / f"cpu{cpu}" / "topology"
    package, core = (_text(topology / name) for name in ("physical_package_id", "core_id"))
    # On Arm and in some virtual machines the package is -1.
    if not core.isdecimal() or not package.removeprefix("-").isdecimal():
        return (-2, cpu)
    return (int(package), int(core))


def _cpu_list(text: str) -> set[int]:
    """Parse the kernel's list format, such as 0-7,16."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            cpus.update(range(int(first), min(int(last or first), MAX_CPUS) + 1))
    return cpus


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_READ_BYTES).decode(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    text = _text(path)
    return int(text) if text.isdecimal() else 0
