"""Facts from recorded /proc and /sys trees."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import BenchmarkError
from agent.hardware import benchmark, read_facts
from agent.hardware.rates import measure_now
from artifact.device_facts import DeviceFacts, MicroBenchmark, fingerprint
from runtimes.processor.cgroup import cpu_quota, memory_limit

X86 = """processor\t: 0
model name\t: Intel(R)  Xeon(R) CPU @ 2.20GHz
flags\t\t: fpu sse4_2 avx avx2 fma f16c avx512f amx_int8 rdrand

processor\t: 1
model name\t: Intel(R)  Xeon(R) CPU @ 2.20GHz
"""
ARM = """processor\t: 0
Features\t: fp asimd evtstrm asimdhp asimddp i8mm
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""


def tree_of(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def facts(root: Path, cores: int = 8, model_memory_bytes: int = 0) -> DeviceFacts:
    return read_facts(model_memory_bytes, root=root, affinity=range(cores))


def test_an_intel_box(tmp_path: Path) -> None:
    found = facts(
        tree_of(
            tmp_path,
            {
                "proc/cpuinfo": X86,
                "proc/meminfo": "MemTotal:       16384000 kB\nMemFree: 1 kB\n",
                "etc/os-release": 'NAME=x\nPRETTY_NAME="Debian GNU/Linux 12"\n',
                "sys/class/power_supply/AC/type": "Mains\n",
                "sys/class/power_supply/AC/online": "1\n",
                "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t NVIDIA A2\n",
            },
        )
    )
    assert found.cpu_model == "Intel(R) Xeon(R) CPU @ 2.20GHz"
    assert found.isa == ("amx_int8", "avx", "avx2", "avx512f", "f16c", "fma", "sse4_2")
    assert found.cores == 8
    assert found.memory_bytes == 16384000 * 1024
    assert found.model_memory_bytes == found.memory_bytes // 2
    assert found.accelerators == ("NVIDIA A2",)
    assert found.power_source == "mains"
    assert found.os == "Debian GNU/Linux 12"


def test_an_arm_board_on_battery(tmp_path: Path) -> None:
    root = tree_of(
        tmp_path,
        {
            "proc/cpuinfo": ARM,
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "sys/class/power_supply/BAT0/type": "Battery\n",
            "sys/class/power_supply/BAT0/status": "Discharging\n",
        },
    )
    found = facts(root)
    assert found.cpu_model == "Raspberry Pi 5 Model B Rev 1.0"
    assert found.isa == ("dotprod", "fp16", "i8mm", "neon")
    assert found.power_source == "battery"
    (root / "proc/device-tree/model").unlink()
    assert facts(root).cpu_model == "implementer 0x41 part 0xd0b"


def test_an_empty_tree_is_no_error(tmp_path: Path) -> None:
    found = facts(tmp_path)
    assert (found.cpu_model, found.isa, found.memory_bytes) == ("unknown", (), 0)
    assert found.power_source == "unknown"


def test_cgroup_v2_limits_of_any_ancestor_hold(tmp_path: Path) -> None:
    root = tree_of(
        tmp_path,
        {
            "proc/cpuinfo": X86,
            "proc/meminfo": "MemTotal: 16384000 kB\n",
            "proc/self/cgroup": "0::/system.slice/flotilla.service\n",
            "sys/fs/cgroup/system.slice/memory.max": "1073741824\n",
            "sys/fs/cgroup/system.slice/flotilla.service/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/flotilla.service/cpu.max": "250000 100000\n",
        },
    )
    assert memory_limit(root) == 1 << 30
    assert cpu_quota(root) == 2.5
    found = facts(root, model_memory_bytes=4 << 30)
    assert (found.memory_bytes, found.cores) == (1 << 30, 2)
    assert found.model_memory_bytes == 1 << 30


def test_cgroup_v1_limits(tmp_path: Path) -> None:
    root = tree_of(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/box\n1:cpu,cpuacct:/box\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "536870912\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
        },
    )
    assert memory_limit(root) == 512 << 20
    assert cpu_quota(root) is None
    (root / "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us").write_text("50000\n")
    assert cpu_quota(root) == 0.5
    assert facts(root).cores == 1


def test_a_containers_own_mount_is_its_cgroup(tmp_path: Path) -> None:
    root = tree_of(
        tmp_path,
        {
            "proc/self/cgroup": "0::/docker/0123\n",
            "sys/fs/cgroup/memory.max": "268435456\n",
        },
    )
    assert memory_limit(root) == 256 << 20


async def test_the_benchmark_measures_in_another_process(tmp_path: Path) -> None:
    measured = await measure_now(tmp_path, facts(tmp_path, cores=1), rounds=1)
    assert measured.memory_bytes_per_second > 1e8
    assert measured.matmul_flops_per_second > 1e8
    assert measured.storage_bytes_per_second > 1e6
    assert measured.int8_operations_per_second > 1e8
    # Fewer bits per weight give more weights per second, by less than the ratio of their sizes.
    rates = measured.weight_bytes_per_second
    assert {"f16", "q8_0", "q4_k", "q2_k"} <= rates.keys()
    assert rates["iq2"] < rates["f16"]
    assert measured.spreads.keys() == {"memory", "matrices", "storage", "int8", *rates}
    # numpy was imported by the other process only.
    assert "agent.hardware.measure" not in sys.modules


def test_the_facts_say_with_how_many_threads_a_model_computes(tmp_path: Path) -> None:
    """A quota of one core of two: the benchmark and the workers use one thread."""
    root = tree_of(tmp_path, {"sys/fs/cgroup/cpu.max": "100000 100000"})
    found = facts(root, cores=2)
    assert (found.cores, found.threads) == (1, 1)
    assert fingerprint(found) != fingerprint(replace(found, threads=2))


async def test_the_benchmark_is_kept_until_hardware_or_limits_change(tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    box = facts(tmp_path, cores=1)
    counted = 0.0

    async def measure(_: Path, __: DeviceFacts) -> MicroBenchmark:
        nonlocal counted
        counted += 1
        return MicroBenchmark(memory_bytes_per_second=counted)

    async def rate(box: DeviceFacts, *, force: bool = False) -> float:
        found = await benchmark(path, box, force=force, measure=measure)
        return found.memory_bytes_per_second

    assert [await rate(box), await rate(box)] == [1, 1]
    for changed in (
        replace(box, cpu_model="another"),
        replace(box, cpu_quota=0.5),
        replace(box, memory_bytes=5),
        replace(box, runtimes={"llama_cpp": "9"}),
    ):
        before = counted
        assert await rate(changed) == before + 1
    before = counted
    assert await rate(changed, force=True) == before + 1
    path.write_text("{")
    assert await rate(changed) == before + 2


async def test_a_broken_benchmark_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(BenchmarkError, match="code 1"):
        await benchmark(tmp_path / "benchmark.json", facts(tmp_path))
