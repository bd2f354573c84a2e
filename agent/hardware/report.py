"""The text report of `flotilla-agent bench`."""

from typing import Final

from artifact.device_facts import DeviceFacts
from artifact.sizes import in_bytes

# Spread of repeated runs on an otherwise idle box; a larger one shows that other work was running.
QUIET_SPREAD: Final = 0.1
GIB: Final = 1 << 30
# Figure, unit, attribute of MicroBenchmark, meaning.
_PLAIN: Final = (
    ("memory", "GB/s", "memory_bytes_per_second", "copying, all cores: bounds generation"),
    ("matrices", "GFLOP/s", "matmul_flops_per_second", "float32 products: bound prompt processing"),
    ("int8", "GOP/s", "int8_operations_per_second", "8-bit products, as quantized prompts take"),
    ("storage", "GB/s", "storage_bytes_per_second", "reading files: bounds loading"),
)


def report(facts: DeviceFacts, seconds: float) -> str:
    """Return the report: the box, its rates, and the generation speed that they allow."""
    return "\n".join(
        (*_box(facts), "", *_rates(facts, seconds), *_kernels(facts), "", _verdict(facts))
    )


def _box(facts: DeviceFacts) -> list[str]:
    topology = facts.topology
    machine = f"{topology.sockets} x " if topology.sockets > 1 else ""
    machine += f"{topology.physical_cores // max(topology.sockets, 1)} cores"
    if topology.threads_per_core > 1:
        machine += f" of {topology.threads_per_core} threads"
    if len(topology.clusters) > 1:
        kinds = (f"{each.cores} at {each.max_megahertz} MHz" for each in topology.clusters)
        machine += f" ({', '.join(kinds)})"
    usable = f"{facts.cores} usable"
    if facts.cpu_quota:
        usable += f", limited to {facts.cpu_quota:g} by its cgroup"
    usable += f"; a model computes with {facts.threads or facts.cores}"
    runtimes = (f"{name} {version}" for name, version in sorted(facts.runtimes.items()))
    memory = f"{in_bytes(facts.memory_bytes)} usable"
    memory += f", of which all models together may take {in_bytes(facts.model_memory_bytes)}"
    rows = (
        ("processor", f"{facts.cpu_model} ({facts.architecture})"),
        ("cores", f"{machine}; {usable}" if topology.sockets else usable),
        ("extensions", ", ".join(facts.isa) or "none that runtimes ask for"),
        ("memory", memory),
        ("accelerators", ", ".join((*facts.accelerators, *facts.gpus)) or "none found"),
        ("runtimes", ", ".join(runtimes) or "none installed"),
    )
    return [f"{name:13}{text}" for name, text in rows]


def _rates(facts: DeviceFacts, seconds: float) -> list[str]:
    lines = [f"measured in {seconds:.0f} s      per second   spread"]
    for name, unit, attribute, meaning in _PLAIN:
        rate: float = getattr(facts.benchmark, attribute)
        figure = f"{rate / 1e9:9.2f} {unit:8}" if rate else f"{'unmeasured':18}"
        lines.append(f"  {name:14}{figure}{_spread(facts, name):>12}   {meaning}")
    return lines


def _kernels(facts: DeviceFacts) -> list[str]:
    rates = facts.benchmark.weight_bytes_per_second
    if not rates:
        return []
    lines = ["", "weights          read and multiplied  spread   so 1 GiB of them gives at most"]
    for name, rate in rates.items():
        figure = f"{rate / 1e9:9.2f} GB/s    "
        lines.append(f"  {name:14}{figure}{_spread(facts, name):>12}   {rate / GIB:.1f} tokens/s")
    return lines


def _spread(facts: DeviceFacts, name: str) -> str:
    spread = facts.benchmark.spreads.get(name)
    return "" if spread is None else f"{spread:.0%}"


def _verdict(facts: DeviceFacts) -> str:
    """Judge the spreads: half of the interquartile range over the median."""
    spreads = facts.benchmark.spreads
    noisy = [name for name, spread in spreads.items() if spread > QUIET_SPREAD]
    if not noisy:
        return f"All figures repeated within {QUIET_SPREAD:.0%}."
    return (
        f"{len(noisy)} of {len(spreads)} figures did not repeat within {QUIET_SPREAD:.0%}: "
        "other work was running.\nMeasure again when the box is idle."
    )
