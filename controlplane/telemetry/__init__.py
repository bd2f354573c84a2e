"""Pure telemetry: quantile sketches, windows, and what they sum to."""

from artifact.sketch import RELATIVE_ACCURACY, Sketch
from controlplane.telemetry.summary import DeviceWindow, Grouping, Summary, summarise
from controlplane.telemetry.windows import Energy, Window, check_window

__all__ = [
    "RELATIVE_ACCURACY",
    "DeviceWindow",
    "Energy",
    "Grouping",
    "Sketch",
    "Summary",
    "Window",
    "check_window",
    "summarise",
]
