"""Pure rules about devices: label selectors, hardware classes, presence."""

from artifact.hardware import hardware_class
from controlplane.fleet.hardware import CoreCluster, CpuTopology, HardwareFacts, MicroBenchmark
from controlplane.fleet.labels import check_labels
from controlplane.fleet.presence import Presence, presence
from controlplane.fleet.selector import Selector, parse_selector
from controlplane.fleet.update import UpdateState

__all__ = [
    "CoreCluster",
    "CpuTopology",
    "HardwareFacts",
    "MicroBenchmark",
    "Presence",
    "Selector",
    "UpdateState",
    "check_labels",
    "hardware_class",
    "parse_selector",
    "presence",
]
