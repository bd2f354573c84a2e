"""One tick of a rollout: from the stored state and the current facts to the next changes.

``tick`` is a function of its arguments and reaches a fixed point: applied to its own result at the
same time it changes nothing. The caller stores the rollout and makes the assignments in one
transaction: after a crash before the commit the next tick plans the same again, after a crash
behind it there is no work left.
"""

from dataclasses import replace
from datetime import datetime

from controlplane.rollouts.forward import go_forward
from controlplane.rollouts.machine import RolloutState
from controlplane.rollouts.plan import Plan, enter
from controlplane.rollouts.records import Facts, Rollout
from controlplane.rollouts.undoing import go_back


def tick(rollout: Rollout, facts: Facts, now: datetime) -> Plan:
    """Return the changes that can happen now; an equal rollout if there are none."""
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
