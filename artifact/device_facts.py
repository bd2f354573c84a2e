"""Hardware facts of a device (flotilla/v1/hardware.proto as plain data) and its hardware class.

A hardware class holds devices so alike that a measurement on one predicts another. The device
computes its own class; the control plane computes it from the reported facts. A publisher may
restrict a release to some classes.
"""

import hashlib
import re
from dataclasses import dataclass, field

from artifact.manifest import canonical_json

# 48 bits: two of 10,000 classes collide with a probability of about 2e-7.
CLASS_DIGITS = 12


@dataclass(frozen=True, slots=True)
class MicroBenchmark:
    """Measured rates per second; 0 if not measured.

    ``weight_bytes_per_second`` is by kernel, such as q4_k: the weights of that type that all cores
    together read from memory and multiply. ``spreads`` is by figure: half of the interquartile
    range of its repetitions over their median.
    """

    memory_bytes_per_second: float = 0.0
    matmul_flops_per_second: float = 0.0
    storage_bytes_per_second: float = 0.0
    int8_operations_per_second: float = 0.0
    weight_bytes_per_second: dict[str, float] = field(default_factory=dict)
    spreads: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CoreCluster:
    """Physical cores of one kind; ``max_megahertz`` is 0 if the kernel does not report it."""

    cores: int
    max_megahertz: int


@dataclass(frozen=True, slots=True)
class CpuTopology:
    """Topology of the whole machine, regardless of limits; zeros if unknown.

    Clusters are in descending order of their clock: several mean performance and efficiency cores.
    """

    sockets: int = 0
    physical_cores: int = 0
    threads_per_core: int = 0
    clusters: tuple[CoreCluster, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """Hardware, limits and runtimes of a device; 0 and empty if unknown.

    ``cores`` and ``memory_bytes`` are what the agent may use: the minimum of hardware, affinity and
    cgroup limits. ``cpu_quota`` is the cgroup limit in cores, 0 without one. ``threads`` is the
    number that one large model computes with, and that the benchmark was measured with.
    ``model_memory_bytes`` is the owner's limit for one model. ``runtimes`` maps installed runtimes
    to their versions; ``gpus`` are graphics processors, whether or not a runtime uses them.
    """

    architecture: str = ""
    cpu_model: str = ""
    isa: tuple[str, ...] = ()
    cores: int = 0
    memory_bytes: int = 0
    model_memory_bytes: int = 0
    accelerators: tuple[str, ...] = ()
    power_source: str = "unknown"
    os: str = ""
    kernel: str = ""
    benchmark: MicroBenchmark = MicroBenchmark()
    runtimes: dict[str, str] = field(default_factory=dict)
    topology: CpuTopology = CpuTopology()
    cpu_quota: float = 0.0
    threads: int = 0
    gpus: tuple[str, ...] = ()


def fingerprint(facts: DeviceFacts) -> str:
    """Return a digest of hardware and limits; measurements on this box hold while it is equal."""
    # Without memory speeds, kernel or operating system: they would discard measurements needlessly.
    parts = (
        facts.cpu_model,
        facts.isa,
        facts.cores,
        facts.cpu_quota,
        facts.threads,
        facts.memory_bytes,
        facts.accelerators,
        sorted(facts.runtimes.items()),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def hardware_class(facts: DeviceFacts) -> str:
    """Return a digest of the facts that determine speed and energy; equal for identical boxes.

    Excludes the operating system, measured rates (they vary between runs) and the owner's memory
    limit (a setting, not hardware).
    """
    normalised = {
        "architecture": _normalise(facts.architecture),
        "cpu_model": normalise_cpu_model(facts.cpu_model),
        "isa": sorted({_normalise(extension) for extension in facts.isa}),
        "cores": facts.cores,
        "memory": memory_bucket(facts.memory_bytes),
        "accelerators": sorted(_normalise(accelerator) for accelerator in facts.accelerators),
        "power_source": _normalise(facts.power_source),
    }
    return hashlib.sha256(canonical_json(normalised)).hexdigest()[:CLASS_DIGITS]


def memory_bucket(size: int) -> int:
    """Return the installed memory in bytes, estimated from what the kernel reports.

    Rounds up to a power of two or one and a half of it: 7.6 GiB is an 8 GiB box, 11.5 GiB a 12 GiB
    one. Returns 0 for 0.
    """
    if size <= 0:
        return 0
    # The smallest power of two that is not below the size.
    power = 1 << (size - 1).bit_length()
    return power * 3 // 4 if size <= power * 3 // 4 else power


def normalise_cpu_model(name: str) -> str:
    """Remove trademarks and clock rates, which differ between boards with the same processor."""
    name = re.sub(r"\((?:r|tm)\)", " ", name, flags=re.IGNORECASE)
    return _normalise(re.sub(r"@.*$", "", name))


def _normalise(text: str) -> str:
    return " ".join(text.lower().split())
