from dataclasses import replace

import pytest

from artifact.device_facts import DeviceFacts, MicroBenchmark, hardware_class, memory_bucket
from controlplane.fleet.hardware import GIB, describe

FACTS = DeviceFacts(
    architecture="x86_64",
    cpu_model="Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz",
    isa=("avx2", "sse4_2"),
    cores=4,
    memory_bytes=int(7.6 * GIB),
    accelerators=("GPU a", "npu b"),
    power_source="mains",
)


@pytest.mark.parametrize(
    "alike",
    [
        {"cpu_model": "intel core  i5-8250u CPU @ 1.80GHz"},
        {"isa": ("sse4_2", "avx2", "AVX2")},
        {"memory_bytes": int(7.9 * GIB)},
        {"accelerators": ("npu b", "GPU a")},
        {"kernel": "6.1", "os": "Debian 13"},
        {"model_memory_bytes": GIB},
        {"benchmark": MicroBenchmark(memory_bytes_per_second=1e9)},
    ],
)
def test_boxes_of_one_make_share_a_class(alike: dict[str, object]) -> None:
    assert hardware_class(replace(FACTS, **alike)) == hardware_class(FACTS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [
        {"architecture": "aarch64"},
        {"cpu_model": "Intel(R) Core(TM) i7-8550U CPU @ 1.80GHz"},
        {"isa": ("sse4_2",)},
        {"cores": 8},
        {"memory_bytes": int(15.5 * GIB)},
        {"accelerators": ("GPU a", "GPU a", "npu b")},
        {"power_source": "battery"},
    ],
)
def test_what_decides_speed_and_energy_parts_classes(other: dict[str, object]) -> None:
    assert hardware_class(replace(FACTS, **other)) != hardware_class(FACTS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "bucket"),
    [(0, 0), (1, 1), (3.7, 4), (4, 4), (4.1, 6), (5.7, 6), (7.6, 8), (11.5, 12), (13, 16)],
)
def test_memory_counts_as_it_was_bought(size: float, bucket: float) -> None:
    assert memory_bucket(int(size * GIB)) == bucket * GIB


def test_description_reads_in_one_line() -> None:
    assert describe(FACTS) == "intel core i5-8250u cpu, 4 cores, 7.6 GiB, GPU a, npu b"
    assert describe(DeviceFacts()) == "unknown processor"
