"""Sockets, cores and their kinds, and graphics processors, from /sys; all reads are bounded."""

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Final

from artifact.device_facts import CoreCluster, CpuTopology

MAX_CPUS: Final = 4096
MAX_DEVICES: Final = 256
MAX_GPUS: Final = 16
MAX_READ_BYTES: Final = 4096
# PCI classes: display controllers, processing accelerators.
_GPU_CLASSES: Final = ("0x03", "0x12")
_VENDORS: Final = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}


def read_topology(root: Path = Path("/")) -> CpuTopology:
    """Read the topology of the online CPUs; zeros without /sys."""
    cores: dict[tuple[int, int], int] = {}
    threads = 0
    for folder in _cpus(root):
        package, core = (
            _number(folder / "topology" / name) for name in ("physical_package_id", "core_id")
        )
        if package is None or core is None:
            continue
        threads += 1
        megahertz = (_number(folder / "cpufreq/cpuinfo_max_freq") or 0) // 1000
        # Hyper-threads share (package, core): each physical core is counted once.
        cores[package, core] = max(megahertz, cores.get((package, core), 0))
    if not cores:
        return CpuTopology()
    clusters = Counter(cores.values())
    return CpuTopology(
        sockets=len({package for package, _ in cores}),
        physical_cores=len(cores),
        threads_per_core=max(1, threads // len(cores)),
        clusters=tuple(
            CoreCluster(count, megahertz)
            for megahertz, count in sorted(clusters.items(), reverse=True)
        ),
    )


def _cpus(root: Path) -> list[Path]:
    found = (root / "sys/devices/system/cpu").glob("cpu[0-9]*")
    return sorted(islice(found, MAX_CPUS))


def read_gpus(root: Path = Path("/")) -> tuple[str, ...]:
    """List graphics processors and accelerators as vendor, PCI ids and driver.

    Devices that are not on PCI are listed by their driver.
    """
    found = []
    for device in _some(root / "sys/bus/pci/devices", "*"):
        if _text(device / "class").startswith(_GPU_CLASSES):
            vendor, kind = _text(device / "vendor"), _text(device / "device")
            name = _VENDORS.get(vendor, "gpu")
            ids = f"{vendor.removeprefix('0x')}:{kind.removeprefix('0x')}"
            found.append(f"{name} {ids}{_driver(device)}")
    for card in _some(root / "sys/class/drm", "card[0-9]"):
        device = card / "device"
        # PCI devices were listed above; the others come from the device tree.
        if not (device / "vendor").exists() and (driver := _driver(device)):
            found.append(f"gpu{driver}")
    return tuple(found[:MAX_GPUS])


def _driver(device: Path) -> str:
    for line in _text(device / "uevent").splitlines():
        name, _, value = line.partition("=")
        if name == "DRIVER" and value:
            return f" (driver {value[:32]})"
    return ""


def _some(folder: Path, pattern: str) -> list[Path]:
    return sorted(islice(folder.glob(pattern), MAX_DEVICES))


def _text(path: Path) -> str:
    """Return the first MAX_READ_BYTES of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as source:
            return source.read(MAX_READ_BYTES).decode(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None
