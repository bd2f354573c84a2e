"""What the agent knows about its box, as plain data (after flotilla/v1/hardware.proto)."""

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class MicroBenchmark:
    """Measured rates per second; 0 where nothing was measured.

    ``weight_bytes_per_second`` is by kernel, for instance q4_k: weights of that kind that all cores
    together read from memory and multiply. ``spreads`` tells by figure how far its repetitions lay
    apart: half of their interquartile range over their median.
    """

    memory_bytes_per_second: float = 0.0
    matmul_flops_per_second: float = 0.0
    storage_bytes_per_second: float = 0.0
    int8_operations_per_second: float = 0.0
    weight_bytes_per_second: dict[str, float] = field(default_factory=dict)
    spreads: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CoreCluster:
    """Physical cores of one kind; ``max_megahertz`` is 0 where the kernel does not say."""

    cores: int
    max_megahertz: int


@dataclass(frozen=True, slots=True)
class CpuTopology:
    """The whole machine's, whatever this process may use of it; zeros where it cannot be told.

    Clusters are in falling order of their clock: more than one means big and little cores.
    """

    sockets: int = 0
    physical_cores: int = 0
    threads_per_core: int = 0
    clusters: tuple[CoreCluster, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a box is made of.

    ``cores`` and ``memory_bytes`` are what this process may use: the smallest of hardware, affinity
    and cgroup limits. ``cpu_quota`` is that limit in cores, 0 without one. ``model_memory_bytes``
    is what one model may take, set by the owner; ``runtimes`` maps the names of loadable runtimes
    to their versions; ``gpus`` are graphics processors, used by a runtime or not.
    """

    architecture: str
    cpu_model: str
    isa: tuple[str, ...]
    cores: int
    memory_bytes: int
    model_memory_bytes: int
    accelerators: tuple[str, ...] = ()
    power_source: str = "unknown"
    os: str = ""
    kernel: str = ""
    benchmark: MicroBenchmark = MicroBenchmark()
    runtimes: dict[str, str] = field(default_factory=dict)
    topology: CpuTopology = CpuTopology()
    cpu_quota: float = 0.0
    gpus: tuple[str, ...] = ()


def fingerprint(facts: DeviceFacts) -> str:
    """Equal as long as what was measured on this box still holds: same hardware, same limits."""
    parts = (
        facts.cpu_model,
        facts.isa,
        facts.cores,
        facts.cpu_quota,
        facts.memory_bytes,
        facts.accelerators,
        sorted(facts.runtimes.items()),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()
