"""Probation of a candidate: checks, entries and routes, then speed, memory and energy on this box.

Missing data is inconclusive, never success.
"""

from agent.probation.candidate import prove
from agent.probation.proof import CheckResult, Cost, Outcome, Proof, Speed
from agent.probation.routes import prove_routes

__all__ = ["CheckResult", "Cost", "Outcome", "Proof", "Speed", "prove", "prove_routes"]
