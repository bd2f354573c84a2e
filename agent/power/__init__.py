"""Power meters and throttling. Without a meter, energy is reported as unmeasured."""

from agent.power.discovery import discover
from agent.power.sampling import keep_sampling
from agent.power.throttling import ThrottleMonitor, ThrottleReader

__all__ = ["ThrottleMonitor", "ThrottleReader", "discover", "keep_sampling"]
