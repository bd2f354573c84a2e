"""Hardware facts from /proc and /sys. ``root`` is the directory of those two, for tests."""

import os
import platform
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from agent.hardware.topology import read_gpus, read_topology
from artifact.device_facts import DeviceFacts
from runtimes import registry
from runtimes.processor.cgroup import cpu_quota, memory_limit
from runtimes.processor.threads import compute_threads

MAX_READ_BYTES: Final = 1 << 16
# From the kernel's flag to the name in ``required_isa`` of manifests. Other flags are irrelevant.
_ISA: Final = {
    **{
        name: name
        for name in (
            "sse4_2",
            "avx",
            "avx2",
            "fma",
            "f16c",
            "avx_vnni",
            "avx512f",
            "avx512bw",
            "avx512vl",
            "avx512_vnni",
            "avx512_bf16",
            "amx_tile",
            "amx_int8",
            "amx_bf16",
            "sve",
            "sve2",
            "sme",
            "i8mm",
            "bf16",
        )
    },
    "asimd": "neon",
    "neon": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fp16",
}
# Device nodes that drivers of accelerators create.
_NODES: Final = {"apex_*": "google-coral", "hailo[0-9]*": "hailo", "accel/accel[0-9]*": "npu"}


def read_facts(
    model_memory_bytes: int = 0,
    *,
    root: Path = Path("/"),
    affinity: Collection[int] | None = None,
) -> DeviceFacts:
    """Read all facts but the benchmark. ``model_memory_bytes`` 0 means half of the memory."""
    cpuinfo = _read(root / "proc/cpuinfo")
    cores = len(os.sched_getaffinity(0) if affinity is None else set(affinity))
    quota = cpu_quota(root)
    memory = _physical_memory(root)
    limit = memory_limit(root)
    memory_bytes = min(memory, limit) if limit else memory
    return DeviceFacts(
        architecture=platform.machine(),
        cpu_model=_cpu_model(root, cpuinfo),
        isa=_isa(cpuinfo),
        cores=max(1, min(cores, int(quota)) if quota else cores),
        threads=compute_threads(root, affinity),
        memory_bytes=memory_bytes,
        model_memory_bytes=min(model_memory_bytes or memory_bytes // 2, memory_bytes),
        accelerators=_accelerators(root),
        power_source=_power_source(root),
        os=_os_name(root),
        kernel=platform.release(),
        runtimes=registry.available(),
        topology=read_topology(root),
        cpu_quota=quota or 0.0,
        gpus=read_gpus(root),
    )


def limits(root: Path = Path("/")) -> tuple[int, int, float | None, int | None]:
    """Return the limits that may change while the daemon runs: cores, threads, quota, memory."""
    cores = len(os.sched_getaffinity(0))
    return cores, compute_threads(root), cpu_quota(root), memory_limit(root)


def _read(path: Path) -> str:
    """Return the first MAX_READ_BYTES of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as source:
            return source.read(MAX_READ_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _cpu_model(root: Path, cpuinfo: str) -> str:
    model = _field(cpuinfo, "model name")
    # Arm kernels have no "model name": the device tree names the board instead.
    model = model or _read(root / "proc/device-tree/model").strip("\0 \n")
    if not model and (part := _field(cpuinfo, "CPU part")):
        model = f"implementer {_field(cpuinfo, 'CPU implementer')} part {part}"
    return " ".join(model.split())[:200] or "unknown"


def _isa(cpuinfo: str) -> tuple[str, ...]:
    flags = (_field(cpuinfo, "flags") or _field(cpuinfo, "Features")).split()
    return tuple(sorted({_ISA[flag] for flag in flags if flag in _ISA}))


def _physical_memory(root: Path) -> int:
    kibibytes = _field(_read(root / "proc/meminfo"), "MemTotal").partition(" ")[0]
    return int(kibibytes) * 1024 if kibibytes.isdigit() else 0


def _accelerators(root: Path) -> tuple[str, ...]:
    found = [
        " ".join((_field(_read(path), "Model") or "nvidia").split())[:100]
        for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    ]
    for pattern, name in _NODES.items():
        found += [name for _ in (root / "dev").glob(pattern)]
    return tuple(found)


def _power_source(root: Path) -> str:
    source = "unknown"
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        kind = _read(supply / "type").strip()
        if kind in {"Mains", "USB"} and _read(supply / "online").strip() == "1":
            return "mains"
        if kind == "Battery" and _read(supply / "status").strip() == "Discharging":
            source = "battery"
    return source


def _os_name(root: Path) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read(root / "etc/os-release"), re.MULTILINE)
    return found[1][:100] if found else platform.system()
