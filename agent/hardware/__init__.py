"""Hardware facts and measured rates of this box."""

from agent.hardware.facts import read_facts
from agent.hardware.monitor import HardwareMonitor
from agent.hardware.rates import benchmark

__all__ = ["HardwareMonitor", "benchmark", "read_facts"]
