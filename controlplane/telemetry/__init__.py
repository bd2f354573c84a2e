"""Pure functions on telemetry windows: bounds and sums."""

from controlplane.telemetry.summary import DeviceWindow, Grouping, Summary, summarise
from controlplane.telemetry.windows import check_window

__all__ = ["DeviceWindow", "Grouping", "Summary", "check_window", "summarise"]
