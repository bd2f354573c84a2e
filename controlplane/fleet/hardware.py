"""What a device is made of, as it says itself."""

import math
from dataclasses import dataclass, field

from artifact.hardware import cpu_model

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class MicroBenchmark:
    """What the box measured of itself, per second; 0 where it did not."""

    memory_bytes_per_second: float = 0.0
    matmul_flops_per_second: float = 0.0
    storage_bytes_per_second: float = 0.0
    int8_operations_per_second: float = 0.0
    weight_bytes_per_second: dict[str, float] = field(default_factory=dict)
    spreads: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CoreCluster:
    """Physical cores of one kind; 0 MHz where the kernel does not say."""

    cores: int
    max_megahertz: int


@dataclass(frozen=True, slots=True)
class CpuTopology:
    """Of the whole machine; zeros where it could not tell."""

    sockets: int = 0
    physical_cores: int = 0
    threads_per_core: int = 0
    clusters: tuple[CoreCluster, ...] = ()


@dataclass(frozen=True, slots=True)
class HardwareFacts:
    """What a box says it is made of. Sizes in bytes; 0 and empty where it could not tell."""

    architecture: str = ""
    cpu_model: str = ""
    isa: tuple[str, ...] = ()
    cores: int = 0
    memory_bytes: int = 0
    accelerators: tuple[str, ...] = ()
    power_source: str = "unknown"
    os: str = ""
    kernel: str = ""
    model_memory_bytes: int = 0
    benchmark: MicroBenchmark = MicroBenchmark()
    runtimes: dict[str, str] = field(default_factory=dict)
    topology: CpuTopology = CpuTopology()
    cpu_quota: float = 0.0
    gpus: tuple[str, ...] = ()


def describe(facts: HardwareFacts) -> str:
    """One line for people."""
    parts = [
        cpu_model(facts.cpu_model) or facts.architecture or "unknown processor",
        f"{facts.cores} cores" if facts.cores else "",
        f"{math.ceil(facts.memory_bytes / GIB * 10) / 10:g} GiB" if facts.memory_bytes else "",
        *facts.accelerators,
    ]
    return ", ".join(part for part in parts if part)
