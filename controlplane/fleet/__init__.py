"""Pure rules about devices: label selectors, hardware classes, presence."""

from controlplane.fleet.labels import check_labels
from controlplane.fleet.presence import Presence, presence
from controlplane.fleet.selector import Selector, parse_selector
from controlplane.fleet.update import UpdateState

__all__ = [
    "Presence",
    "Selector",
    "UpdateState",
    "check_labels",
    "parse_selector",
    "presence",
]
