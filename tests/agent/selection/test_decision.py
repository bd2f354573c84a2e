"""The decision by itself, with limits, scores and expectations to be checked by hand."""

from dataclasses import replace

import pytest

from agent.selection import Candidate, Decision
from agent.selection.decision import UNCERTAINTY, missed_limits
from agent.selection.figures import Figures
from agent.selection.prediction import Source
from artifact.manifest import Objective

FAST = Candidate(
    variant="fast",
    runtime="llama_cpp",
    quantization="q4",
    bucket="ranked",
    reason="fits",
    predicted_memory_bytes=100,
    predicted_tokens_per_second=20.0,
    source=Source.HARDWARE_CLASS,
)
SLOW = replace(FAST, variant="slow", predicted_tokens_per_second=10.0, predicted_memory_bytes=60)


def decision(objective: Objective, *candidates: Candidate, limit: int = 5) -> Decision:
    return Decision(
        slot="chat",
        model="acme/m@1",
        objective=objective,
        memory_budget_bytes=1000,
        min_tokens_per_second=0,
        max_candidates=limit,
        candidates=candidates,
        reason="",
    )


def figures(speed: float, memory: int, joules: float | None = None) -> Figures:
    return Figures(tokens_per_second=speed, memory_bytes=memory, joules_per_token=joules)


def test_unmeasured_figures_are_zero_or_none() -> None:
    blank = (FAST.measured_memory_bytes, FAST.measured_tokens_per_second, FAST.context_length)
    assert blank == (0, 0.0, 0)
    assert Candidate("v", "r", "q", "ranked", "", 0).predicted_tokens_per_second == 0.0


def test_a_measurement_at_the_memory_budget_is_kept_and_one_above_it_excluded() -> None:
    before = decision(Objective.TOKENS_PER_SECOND, FAST)
    at = before.with_measurement("fast", figures(9, 1000))
    assert at.candidate("fast").bucket == "ranked"
    above = before.with_measurement("fast", figures(9, 1001))
    assert above.candidate("fast").bucket == "excluded"


def test_a_decision_fits_while_one_candidate_does() -> None:
    out = replace(SLOW, bucket="excluded")
    assert not decision(Objective.QUALITY, FAST, out).nothing_fits
    assert decision(Objective.QUALITY, out).nothing_fits


def test_by_memory_a_smaller_prediction_is_tried_and_a_larger_one_is_not() -> None:
    first = decision(Objective.MEMORY, FAST, SLOW)
    tried = first.with_measurement("fast", figures(9, 80))
    assert tried.next_candidate() == "slow"
    tried = first.with_measurement("fast", figures(9, 50))
    assert tried.next_candidate() is None


@pytest.mark.parametrize(("joules", "tried"), [(0.4, "slow"), (0.6, None)])
def test_by_energy_a_predicted_energy_decides(joules: float, tried: str | None) -> None:
    other = replace(SLOW, predicted_joules_per_token=joules)
    found = decision(Objective.TOKENS_PER_JOULE, FAST, other).with_measurement(
        "fast", Figures(tokens_per_second=20, memory_bytes=80, joules_per_token=0.5)
    )
    assert found.next_candidate() == tried


@pytest.mark.parametrize(("speed", "tried"), [(21.0, "slow"), (19.0, None)])
def test_by_energy_without_a_prediction_power_is_taken_as_the_best_ones(
    speed: float, tried: str | None
) -> None:
    other = replace(SLOW, predicted_tokens_per_second=speed)
    found = decision(Objective.TOKENS_PER_JOULE, FAST, other).with_measurement(
        "fast", Figures(tokens_per_second=20, memory_bytes=80, joules_per_token=0.5)
    )
    assert found.next_candidate() == tried


def test_energy_decides_only_if_every_measurement_has_it() -> None:
    both = decision(Objective.TOKENS_PER_JOULE, FAST, SLOW)
    both = both.with_measurement("fast", figures(0.9, 1))
    both = both.with_measurement(
        "slow", Figures(tokens_per_second=0.5, memory_bytes=1, joules_per_token=9)
    )
    # Without energy for one of them, speed decides.
    assert both.conclude().chosen_variant == "fast"
    metered = decision(Objective.TOKENS_PER_JOULE, FAST, SLOW)
    for name, joules in (("fast", 2.0), ("slow", 0.5)):
        metered = metered.with_measurement(
            name, Figures(tokens_per_second=5, memory_bytes=1, joules_per_token=joules)
        )
    assert metered.conclude().chosen_variant == "slow"


def test_a_prior_of_the_class_is_taken_as_it_is_and_the_roofline_corrected() -> None:
    own = decision(Objective.TOKENS_PER_SECOND, FAST, replace(SLOW, predicted_tokens_per_second=9))
    tried = own.with_measurement("fast", figures(8.9, 1))
    assert tried.next_candidate() == "slow"
    assert (
        own.with_measurement(
            "fast", Figures(tokens_per_second=9.1, memory_bytes=1)
        ).next_candidate()
        is None
    )


@pytest.mark.parametrize(("measured", "tried"), [(10.9, "slow"), (11.1, None)])
def test_without_ratios_a_roofline_gets_the_uncertainty_in_its_favour(
    measured: float, tried: str | None
) -> None:
    """Another runtime's measurement says nothing about this roofline's error."""
    assert pytest.approx(0.1) == UNCERTAINTY
    roofline = replace(SLOW, source=Source.ROOFLINE, runtime="onnx")
    found = decision(Objective.TOKENS_PER_SECOND, FAST, roofline).with_measurement(
        "fast", Figures(tokens_per_second=measured, memory_bytes=1)
    )
    assert found.next_candidate() == tried


def test_an_unpredicted_variant_gives_no_ratio() -> None:
    blind = replace(FAST, predicted_tokens_per_second=0.0, source=Source.ROOFLINE)
    roofline = replace(SLOW, source=Source.ROOFLINE)
    found = decision(Objective.TOKENS_PER_SECOND, blind, roofline).with_measurement(
        "fast", Figures(tokens_per_second=10.5, memory_bytes=1)
    )
    assert found.next_candidate() == "slow"


@pytest.mark.parametrize(
    ("ttft", "joules", "misses"),
    [(0.5, 0.8, 0), (0.51, 0.8, 1), (0.5, 0.81, 1), (None, None, 0), (9.0, 9.0, 2)],
)
def test_limits_hold_up_to_their_value(
    ttft: float | None, joules: float | None, misses: int
) -> None:
    limits = replace(
        decision(Objective.QUALITY),
        min_tokens_per_second=5,
        max_ttft_seconds=0.5,
        max_joules_per_token=0.8,
    )
    found = Figures(tokens_per_second=5, ttft_seconds=ttft, joules_per_token=joules)
    assert len(missed_limits(found, limits, "tokens/s")) == misses
