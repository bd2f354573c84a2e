"""Hardware facts of a device as text for operators."""

import math

from artifact.device_facts import DeviceFacts, normalise_cpu_model

GIB = 1 << 30


def describe(facts: DeviceFacts) -> str:
    """Return one line: processor, cores, memory and accelerators."""
    parts = [
        normalise_cpu_model(facts.cpu_model) or facts.architecture or "unknown processor",
        f"{facts.cores} cores" if facts.cores else "",
        f"{math.ceil(facts.memory_bytes / GIB * 10) / 10:g} GiB" if facts.memory_bytes else "",
        *facts.accelerators,
    ]
    return ", ".join(part for part in parts if part)
