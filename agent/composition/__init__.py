"""Routes of several models: splits, cascades and pipelines."""

from agent.composition.cascade import Replay, limit_sampling, try_answer
from agent.composition.pipeline import classifier_input, select_target
from agent.composition.split import Split

__all__ = ["Replay", "Split", "classifier_input", "limit_sampling", "select_target", "try_answer"]
