"""Threads per model: cores, their kinds, the CPU quota, and other models on the box."""

from pathlib import Path

import pytest

from runtimes.processor.threads import (
    SINGLE_THREAD_BYTES,
    compute_threads,
    threads_for_model,
)
from tests.agent.hardware.test_facts import tree_of
from tests.agent.hardware.test_topology import CPU, cpus

QUOTA = "sys/fs/cgroup/cpu.max"
LARGE = 1 << 30


def threads(root: Path, files: dict[str, str], *allowed: int) -> int:
    return compute_threads(tree_of(root, files), allowed)


def test_without_any_file_each_allowed_cpu_is_a_core(tmp_path: Path) -> None:
    assert threads(tmp_path, {}, 0, 1, 5) == 3


def test_two_threads_of_a_core_are_one(tmp_path: Path) -> None:
    siblings = cpus(*[(0, core, 0) for core in (0, 1, 2, 3)] * 2)
    assert threads(tmp_path, siblings, *range(8)) == 4
    # The process may use both threads of the first core, and one of the second.
    assert threads(tmp_path, siblings, 0, 4, 1) == 2


def test_cores_of_two_packages_are_told_apart(tmp_path: Path) -> None:
    assert threads(tmp_path, cpus((0, 0, 0), (1, 0, 0)), 0, 1) == 2


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 4), ("150000 100000", 1), ("50000 100000", 1), ("300000 100000", 3)],
)
def test_the_quota_of_the_cgroup_bounds_the_threads(
    tmp_path: Path, quota: str, expected: int
) -> None:
    assert threads(tmp_path, {QUOTA: quota}, *range(4)) == expected


def test_little_cores_do_not_compute_beside_big_ones(tmp_path: Path) -> None:
    files = cpus(*[(0, core, 0) for core in range(8)])
    for cpu in range(8):
        files[f"{CPU}/cpu{cpu}/cpu_capacity"] = "1024" if cpu >= 4 else "380"
    assert threads(tmp_path, files, *range(8)) == 4
    # Where only little ones are allowed, they compute.
    assert threads(tmp_path, files, 0, 1) == 2


def test_cores_whose_clocks_differ_a_little_are_of_one_kind(tmp_path: Path) -> None:
    clocks = [5_100_000, 5_300_000, 5_300_000, 4_900_000]
    files = cpus(*[(0, core, clock) for core, clock in enumerate(clocks)])
    assert threads(tmp_path, files, *range(4)) == 4


def test_efficiency_cores_of_a_hybrid_processor_are_left_out(tmp_path: Path) -> None:
    # Two performance cores with two threads each, four efficiency cores.
    files = cpus((0, 0, 0), (0, 0, 0), (0, 1, 0), (0, 1, 0), *[(0, n, 0) for n in range(2, 6)])
    files["sys/devices/cpu_core/cpus"] = "0-3\n"
    files["sys/devices/cpu_atom/cpus"] = "4-7\n"
    assert threads(tmp_path, files, *range(8)) == 2
    assert threads(tmp_path, files, 4, 5, 6) == 3


@pytest.mark.parametrize("text", ["", "x", "0-", "-3", "5-1", "0-99999999999", "\xff"])
def test_a_malformed_list_of_cpus_is_survived(tmp_path: Path, text: str) -> None:
    files = {"sys/devices/cpu_core/cpus": text, f"{CPU}/cpu0/topology/core_id": "?"}
    assert threads(tmp_path, files, 0, 1) >= 1


@pytest.mark.parametrize(
    ("models", "expected"), [(0, 8), (1, 8), (2, 8), (3, 5), (4, 4), (16, 1), (99, 1)]
)
def test_many_models_share_the_cores(models: int, expected: int) -> None:
    assert threads_for_model(8, LARGE, models) == expected


def test_a_small_model_has_one_thread() -> None:
    assert threads_for_model(8, SINGLE_THREAD_BYTES - 1) == 1
    assert threads_for_model(8, SINGLE_THREAD_BYTES) == 8
