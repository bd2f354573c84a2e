"""Topology and graphics processors from recorded /sys trees."""

from pathlib import Path

from agent.hardware.topology import MAX_GPUS, read_gpus, read_topology
from artifact.device_facts import CoreCluster, CpuTopology
from tests.agent.hardware.test_facts import tree_of

CPU = "sys/devices/system/cpu"


def cpus(*cores: tuple[int, int, int]) -> dict[str, str]:
    """CPUs as (package, core, maximal kHz; 0: the kernel does not say)."""
    files = {}
    for number, (package, core, kilohertz) in enumerate(cores):
        files[f"{CPU}/cpu{number}/topology/physical_package_id"] = f"{package}\n"
        files[f"{CPU}/cpu{number}/topology/core_id"] = f"{core}\n"
        if kilohertz:
            files[f"{CPU}/cpu{number}/cpufreq/cpuinfo_max_freq"] = f"{kilohertz}\n"
    return files


def test_two_sockets_with_two_threads_per_core(tmp_path: Path) -> None:
    siblings = [(package, core, 0) for package in (0, 1) for core in (0, 1) for _ in (0, 1)]
    assert read_topology(tree_of(tmp_path, cpus(*siblings))) == CpuTopology(
        sockets=2, physical_cores=4, threads_per_core=2, clusters=(CoreCluster(4, 0),)
    )


def test_big_and_little_cores_are_clusters_the_fast_first(tmp_path: Path) -> None:
    little = [(0, core, 1_800_000) for core in range(4)]
    big = [(0, core, 2_400_000) for core in range(4, 8)]
    found = read_topology(tree_of(tmp_path, cpus(*little, *big)))
    assert found.clusters == (CoreCluster(4, 2400), CoreCluster(4, 1800))
    assert (found.sockets, found.physical_cores, found.threads_per_core) == (1, 8, 1)


def test_what_is_no_number_or_not_there_is_left_out(tmp_path: Path) -> None:
    assert read_topology(tmp_path) == CpuTopology()
    root = tree_of(tmp_path, cpus((0, 0, 0)) | {f"{CPU}/cpu1/topology/core_id": "x"})
    assert read_topology(root).physical_cores == 1


def test_gpus_are_named_by_vendor_ids_and_driver(tmp_path: Path) -> None:
    pci = "sys/bus/pci/devices/0000:01:00.0"
    root = tree_of(
        tmp_path,
        {
            f"{pci}/class": "0x030200\n",
            f"{pci}/vendor": "0x10de\n",
            f"{pci}/device": "0x2330\n",
            f"{pci}/uevent": "DRIVER=nvidia\nPCI_CLASS=30200\n",
            "sys/bus/pci/devices/0000:00:1f.2/class": "0x010601\n",
            "sys/class/drm/card0/device/uevent": "DRIVER=panfrost\nOF_NAME=gpu\n",
            # The card of the PCI device above.
            "sys/class/drm/card1/device/vendor": "0x10de\n",
        },
    )
    assert read_gpus(root) == ("nvidia 10de:2330 (driver nvidia)", "gpu (driver panfrost)")
    assert read_gpus(tmp_path / "empty") == ()


def test_the_number_of_gpus_is_bounded(tmp_path: Path) -> None:
    files = {f"sys/bus/pci/devices/{number}/class": "0x120000" for number in range(MAX_GPUS + 9)}
    assert len(read_gpus(tree_of(tmp_path, files))) == MAX_GPUS
