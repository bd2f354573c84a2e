"""The release's policy: exclusions, limits, and variants predicted to miss a limit."""

from dataclasses import replace

from agent.selection import Decision, Figures, Prior, rank
from artifact.manifest import Exclusion, Objective, SelectionPolicy, SlotPolicy
from tests.agent.selection.test_memory_prediction import load
from tests.agent.selection.test_ranking import (
    FACTS,
    GIB,
    KNOWN,
    Q4,
    Q8,
    bare,
    component,
    order,
    why,
)


def test_an_exclusion_says_what_it_matches() -> None:
    policy = SelectionPolicy(exclude=(Exclusion(slot="chat", quantization="q4-k-m"),))
    decision = rank(component(Q8, Q4), policy, KNOWN)
    assert order(decision) == ["q8-0"]
    assert why(decision, "q4-k-m") == "the release excludes slot chat quantization q4-k-m"
    other = SelectionPolicy(exclude=(Exclusion(slot="eyes", quantization="q4-k-m"),))
    assert len(order(rank(component(Q8, Q4), other, KNOWN))) == 2


def test_a_slots_own_policy_goes_before_the_releases() -> None:
    own = SlotPolicy(objective=Objective.QUALITY, max_memory_bytes=2 * GIB)
    decision = rank(component(Q8, Q4), SelectionPolicy(slots={"chat": own}), KNOWN)
    assert decision.objective is Objective.QUALITY
    assert why(decision, "q8-0") == "needs 2.8 GiB, budget 2.0 GiB"


def test_what_the_class_says_only_moves_a_variant_to_the_end() -> None:
    """Class measurements are unsigned: a dishonest server must not exclude a variant."""
    policy = SelectionPolicy(min_tokens_per_second=5)
    slow = bare(FACTS, priors={"q4-k-m": Prior(tokens_per_second=0.1)})
    decision = rank(component(Q8, Q4), policy, slow)
    assert order(decision) == ["q8-0", "q4-k-m"]
    assert "tried last: predicted 0.1 tokens/s, 5 asked" in decision.candidate("q4-k-m").reason
    big = bare(FACTS, priors={"q4-k-m": Prior(tokens_per_second=99, memory_bytes=9 * GIB)})
    decision = rank(component(Q8, Q4), policy, big)
    assert order(decision) == ["q8-0", "q4-k-m"]
    assert "took 9.0 GiB on devices of this" in decision.candidate("q4-k-m").reason
    # A good class figure does not cause another trial once a measured variant is good.
    assert measured_at(decision, "q8-0", 7).next_candidate() is None
    # A small class figure does not make a variant fit.
    small = bare(FACTS, priors={"q8-0": Prior(tokens_per_second=99, memory_bytes=1)})
    assert "q8-0" not in order(rank(component(Q8, max_memory_bytes=GIB), policy, small))


def test_what_is_in_doubt_is_tried_only_when_nothing_else_is_good() -> None:
    policy = SelectionPolicy(min_tokens_per_second=5)
    slow = replace(load("q4-k-m", 1, 1, model="demo/model@1"), tokens_per_second=1)
    decision = rank(component(Q8, Q4), policy, bare(FACTS, [slow]))
    assert decision.next_candidate() == "q8-0"
    good = decision.with_measurement("q8-0", Figures(tokens_per_second=6, memory_bytes=GIB))
    assert good.next_candidate() is None
    poor = decision.with_measurement("q8-0", Figures(tokens_per_second=4, memory_bytes=GIB))
    assert poor.next_candidate() == "q4-k-m"


def measured_at(decision: Decision, variant: str, speed: float) -> Decision:
    return decision.with_measurement(variant, Figures(tokens_per_second=speed, memory_bytes=GIB))


def measured(policy: SelectionPolicy, *, ttft: float, joules: float | None) -> Decision:
    decision = rank(component(Q4), policy, bare(FACTS, metered=joules is not None))
    return decision.with_measurement(
        "q4-k-m",
        Figures(tokens_per_second=20, memory_bytes=GIB, ttft_seconds=ttft, joules_per_token=joules),
    )


def test_limits_on_ttft_and_energy_hold_for_what_was_measured() -> None:
    policy = SelectionPolicy(max_ttft_seconds=0.5, max_joules_per_token=0.8)
    assert measured(policy, ttft=0.4, joules=0.7).conclude().chosen_variant == "q4-k-m"
    late = measured(policy, ttft=0.6, joules=0.7)
    assert why(late, "q4-k-m") == "measured 0.6 s to the first token, 0.5 allowed"
    hungry = measured(policy, ttft=0.4, joules=0.9)
    assert why(hungry, "q4-k-m") == "measured 0.9 J/token, 0.8 allowed"


def test_energy_is_not_judged_without_a_meter_and_that_is_said() -> None:
    policy = SelectionPolicy(max_joules_per_token=0.8)
    decision = rank(component(Q4), policy, KNOWN)
    assert decision.reason.endswith("no power meter; nor is max_joules_per_token judged")
    concluded = measured(policy, ttft=1, joules=None).conclude()
    assert concluded.chosen_variant == "q4-k-m"
    assert "not tokens_per_joule, as this box has no power meter" in concluded.reason
