"""What this box is made of, and how fast it is."""

from agent.hardware.facts import read_facts
from agent.hardware.known import KnownHardware
from agent.hardware.rates import benchmark

__all__ = ["KnownHardware", "benchmark", "read_facts"]
