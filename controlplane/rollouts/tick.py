"""One tick of a rollout: from what is stored and what is known to what changes now.

``tick`` is a function of its arguments and reaches a fixed point: applied again to its own result
at the same moment it changes nothing. Whoever applies a plan stores the rollout and makes the
assignments in one transaction; a crash before the commit leaves the plan to be made again, a crash
after it leaves nothing to do.
"""

from dataclasses import replace
from datetime import datetime

from controlplane.rollouts.forward import go_forward
from controlplane.rollouts.machine import RolloutState
from controlplane.rollouts.plan import Plan, enter
from controlplane.rollouts.records import Facts, Rollout
from controlplane.rollouts.undoing import go_back


def tick(rollout: Rollout, facts: Facts, now: datetime) -> Plan:
    """Everything that can happen now. Unchanged (equal) when nothing can."""
    plan = Plan(rollout)
    while True:
        following = _advance(plan, facts, now)
        if following == plan:
            break
        plan = following
    if plan.rollout != rollout:
        plan = replace(plan, rollout=replace(plan.rollout, updated_at=now))
    return plan


def _advance(plan: Plan, facts: Facts, now: datetime) -> Plan:
    match plan.rollout.state:
        case RolloutState.SCHEDULED:
            return replace(plan, rollout=enter(plan.rollout, RolloutState.RUNNING))
        case RolloutState.RUNNING:
            return go_forward(plan, facts, now)
        case RolloutState.ROLLING_BACK:
            return go_back(plan, facts, now)
        case _:
            return plan
