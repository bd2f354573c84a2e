"""Worker processes count in full, and the slots of a release share the box's budget."""

from dataclasses import replace

import msgspec
import pytest

from agent.selection import Decision, Knowledge, rank, rank_all
from agent.selection.memory_prediction import PROCESS_BYTES, process_bytes
from artifact.manifest import Component, Objective, SelectionPolicy
from tests.agent.selection.test_ranking import FACTS, GIB, bare, component, variant, why

MIB = 1 << 20
QUALITY = SelectionPolicy(objective=Objective.QUALITY)
# 1.1 times the size: 2.2 and 1.1 GiB.
LARGE = variant("large", 2, perplexity=5.0)
SMALL = variant("small", 1, perplexity=9.0)


def slots(count: int) -> list[Component]:
    return [
        msgspec.structs.replace(component(LARGE, SMALL), slot=f"slot{number}")
        for number in range(count)
    ]


def ranked(count: int, budget_gib: float) -> list[Decision]:
    known = bare(replace(FACTS, model_memory_bytes=int(budget_gib * GIB)))
    return rank_all(slots(count), QUALITY, [known] * count)


def test_a_tiny_model_needs_a_whole_process() -> None:
    tiny = variant("tiny", 1 / 1024)
    known = Knowledge(replace(FACTS, model_memory_bytes=12 * MIB))
    decision = rank(component(tiny), SelectionPolicy(), known)
    assert decision.nothing_fits
    assert why(decision, "tiny") == "needs 64.1 MiB, budget 12.0 MiB"


def test_a_runtime_that_is_not_known_takes_as_much_as_the_largest() -> None:
    assert process_bytes("another") == max(PROCESS_BYTES.values())


def test_one_slot_has_the_whole_budget() -> None:
    (decision,) = ranked(1, 3.0)
    assert decision.memory_budget_bytes == 3 * GIB
    assert decision.next_candidate() == "large"


def test_an_earlier_slot_leaves_what_the_later_ones_need() -> None:
    decisions = ranked(3, 4.6)
    assert [decision.next_candidate() for decision in decisions] == ["large", "small", "small"]
    assert why(decisions[1], "large").startswith("needs 2.2 GiB, budget 1.1 GiB of 4.6 GiB for all")


@pytest.mark.parametrize(("count", "budget"), [(2, 2.5), (2, 8.0), (3, 4.6), (5, 7.0)])
def test_the_slots_together_never_exceed_the_budget(count: int, budget: float) -> None:
    decisions = ranked(count, budget)
    assert sum(decision.memory_budget_bytes for decision in decisions) <= int(budget * GIB)
    for decision in decisions:
        first = decision.next_candidate()
        assert first is not None
        needed = decision.candidate(first).predicted_memory_bytes
        assert needed <= decision.memory_budget_bytes


def test_models_that_fit_alone_and_not_together_are_refused() -> None:
    """Each of the five fits the budget, the five do not."""
    decisions = ranked(5, 3.0)
    assert any(decision.nothing_fits for decision in decisions)
    assert all(rank(each, QUALITY, bare(FACTS)).next_candidate() for each in slots(5))
