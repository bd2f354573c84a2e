"""Select variants: which ones fit this box, in what order to try them, and why. Pure functions."""

from agent.selection.decision import Candidate, Decision
from agent.selection.figures import Figures
from agent.selection.measurement import Measurement, Prior
from agent.selection.ranking import Knowledge, rank, rate_unit
from agent.selection.shares import rank_all
from agent.selection.speed_prediction import Source

__all__ = [
    "Candidate",
    "Decision",
    "Figures",
    "Knowledge",
    "Measurement",
    "Prior",
    "Source",
    "rank",
    "rank_all",
    "rate_unit",
]
