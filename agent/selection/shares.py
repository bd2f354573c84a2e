"""Share the box's memory budget among the slots of a release."""

from collections.abc import Sequence
from dataclasses import replace

from agent.selection.decision import Decision
from agent.selection.ranking import Knowledge, box_budget, rank
from artifact.manifest import Component, SelectionPolicy


def rank_all(
    components: Sequence[Component], policy: SelectionPolicy, known: Sequence[Knowledge]
) -> list[Decision]:
    """Rank the variants of every component so that the chosen ones fit the box together.

    ``known`` belongs to the components in order. Slots are served in order: each may take what the
    earlier ones leave, less the least that the later ones need. The spare memory is then divided in
    proportion to the slots' needs, so that the budgets of all slots never exceed the box's.
    """
    total = box_budget(known[0].facts) if known else 0
    if len(components) == 1 or not total:
        return [rank(each, policy, its) for each, its in zip(components, known, strict=True)]
    least = [
        _least_bytes(rank(each, policy, its)) for each, its in zip(components, known, strict=True)
    ]
    needs: list[int] = []
    decisions: list[Decision] = []
    for number, (component, its) in enumerate(zip(components, known, strict=True)):
        share = max(0, total - sum(needs) - sum(least[number + 1 :]))
        decision = rank(component, policy, replace(its, share_bytes=share))
        decisions.append(decision)
        needs.append(_first_bytes(decision) or least[number])
    spare = total - sum(needs)
    if spare < 0 or any(decision.nothing_fits for decision in decisions):
        return decisions
    shares = [need + spare * need // sum(needs) for need in needs]
    return [
        rank(component, policy, replace(its, share_bytes=share))
        for component, its, share in zip(components, known, shares, strict=True)
    ]


def _least_bytes(decision: Decision) -> int:
    """Return the need of the smallest variant that could run; 0 if none can."""
    ranked = [each for each in decision.candidates if each.bucket == "ranked"]
    return min((each.predicted_memory_bytes for each in ranked), default=0)


def _first_bytes(decision: Decision) -> int:
    variant = decision.next_candidate()
    return decision.candidate(variant).predicted_memory_bytes if variant else 0
