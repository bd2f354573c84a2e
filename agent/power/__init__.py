"""Power meters and throttling. A box without a meter has unmeasured energy, never a guessed one."""

from agent.power.discovery import discover
from agent.power.sampling import keep_sampling
from agent.power.throttling import ThrottleTally, ThrottleWatch

__all__ = ["ThrottleTally", "ThrottleWatch", "discover", "keep_sampling"]
