"""Routes of several models: splits, cascades and pipelines."""

from agent.composition.cascade import Replay, attempt, hear
from agent.composition.pipeline import input_of, target_of
from agent.composition.split import Split

__all__ = ["Replay", "Split", "attempt", "hear", "input_of", "target_of"]
