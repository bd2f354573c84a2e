"""Decisions: which variant is tried next, and which limits a measured one misses."""

from dataclasses import replace
from typing import Any

import pytest

from agent.selection import Candidate, Decision, Figures, Source
from agent.selection.decision import UNCERTAINTY
from agent.selection.figures import missed_limits
from artifact.manifest import Objective, SelectionPolicy

MIB = 1 << 20


def candidate(name: str, **fields: Any) -> Candidate:
    return replace(
        Candidate(
            variant=name,
            runtime="llama_cpp",
            quantization=name,
            bucket="ranked",
            reason="",
            predicted_memory_bytes=2 * MIB,
        ),
        **fields,
    )


def decision(objective: Objective, *candidates: Candidate) -> Decision:
    return Decision(
        slot="chat",
        model="demo/model@1",
        objective=objective,
        memory_budget_bytes=4 * MIB,
        min_tokens_per_second=0,
        max_candidates=5,
        candidates=candidates,
        reason="",
    )


def after(first: Decision, **figures: Any) -> str | None:
    """Return the variant to try after the first one was measured."""
    name = first.next_candidate()
    assert name is not None
    return first.with_measurement(name, Figures(**figures)).next_candidate()


@pytest.mark.parametrize(("predicted", "tried"), [(MIB - 1, True), (MIB, False), (MIB + 1, False)])
def test_a_variant_that_may_take_less_memory_is_tried(predicted: int, tried: bool) -> None:
    rest = candidate("b", predicted_memory_bytes=predicted)
    first = decision(Objective.MEMORY, candidate("a"), rest)
    assert after(first, tokens_per_second=1, memory_bytes=MIB) == ("b" if tried else None)


@pytest.mark.parametrize(("joules", "tried"), [(0.49, True), (0.5, False), (0.51, False)])
def test_a_variant_that_may_take_less_energy_is_tried(joules: float, tried: bool) -> None:
    rest = candidate("b", predicted_joules_per_token=joules, source=Source.MEASURED_HERE)
    first = decision(Objective.TOKENS_PER_JOULE, candidate("a"), rest)
    measured = {"tokens_per_second": 10, "memory_bytes": MIB, "joules_per_token": 0.5}
    assert after(first, **measured) == ("b" if tried else None)


@pytest.mark.parametrize(("speed", "tried"), [(10.1, True), (9.9, False)])
def test_without_a_prediction_of_energy_the_faster_variant_takes_less(
    speed: float, tried: bool
) -> None:
    """The same power for less time per token."""
    rest = candidate("b", predicted_tokens_per_second=speed, source=Source.MEASURED_HERE)
    first = decision(Objective.TOKENS_PER_JOULE, candidate("a"), rest)
    measured = {"tokens_per_second": 10, "memory_bytes": MIB, "joules_per_token": 0.5}
    assert after(first, **measured) == ("b" if tried else None)


def test_energy_decides_only_if_every_measured_variant_has_it() -> None:
    slow = candidate("a", tried=True, measured_tokens_per_second=5.0)
    first = decision(Objective.TOKENS_PER_JOULE, slow, candidate("b", tried=True))
    metered = first.with_measurement(
        "b", Figures(tokens_per_second=1, memory_bytes=1, joules_per_token=0.1)
    )
    # The first has no energy, so speed decides.
    assert metered.conclude().chosen_variant == "a"
    both = metered.with_measurement(
        "a", Figures(tokens_per_second=5, memory_bytes=1, joules_per_token=0.2)
    )
    assert both.conclude().chosen_variant == "b"


def tried_at(ratio: float, predicted: float, **rest: Any) -> bool:
    """Measure one variant at ``ratio`` of its prediction; return True if the other is tried."""
    first = candidate("a", predicted_tokens_per_second=10.0)
    other = candidate("b", predicted_tokens_per_second=predicted, **rest)
    found = decision(Objective.TOKENS_PER_SECOND, first, other)
    return after(found, tokens_per_second=10 * ratio, memory_bytes=MIB) == "b"


def test_a_computed_speed_is_corrected_by_what_was_measured() -> None:
    bound = 5 / (0.5 * (1 + UNCERTAINTY))
    assert tried_at(0.5, bound * 1.01)
    assert not tried_at(0.5, bound * 0.99)


def test_the_speed_of_another_runtime_is_corrected_by_the_uncertainty_alone() -> None:
    bound = 5 / (1 + UNCERTAINTY)
    assert tried_at(0.5, bound * 1.01, runtime="onnx")
    assert not tried_at(0.5, bound * 0.99, runtime="onnx")


def test_a_speed_that_others_measured_is_not_corrected() -> None:
    assert tried_at(0.5, 5.1, source=Source.HARDWARE_CLASS)
    assert not tried_at(0.5, 4.9, source=Source.HARDWARE_CLASS)


def test_a_speed_that_was_not_predicted_corrects_no_other() -> None:
    found = decision(
        Objective.TOKENS_PER_SECOND,
        candidate("a", predicted_tokens_per_second=0.0),
        candidate("b", predicted_tokens_per_second=10.0),
    )
    assert after(found, tokens_per_second=5, memory_bytes=MIB) == "b"


def test_a_variant_of_exactly_the_budget_fits() -> None:
    found = decision(Objective.QUALITY, candidate("a"))
    fits = found.with_measurement("a", Figures(tokens_per_second=1, memory_bytes=4 * MIB))
    assert fits.conclude().chosen_variant == "a"
    more = found.with_measurement("a", Figures(tokens_per_second=1, memory_bytes=4 * MIB + 1))
    assert more.nothing_fits


def test_a_decision_with_one_variant_left_still_fits() -> None:
    found = decision(Objective.QUALITY, candidate("a"), candidate("b"))
    assert not found.with_failure("a", "crashed").nothing_fits
    assert found.with_failure("a", "crashed").with_failure("b", "crashed").nothing_fits


def test_an_unknown_variant_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        decision(Objective.QUALITY, candidate("a")).candidate("b")


def test_of_unknown_quality_the_known_one_is_better() -> None:
    known = candidate("a", tried=True, quality_value=-1e9)
    unknown = candidate("b", tried=True, quality_value=None)
    for order in ((known, unknown), (unknown, known)):
        assert decision(Objective.QUALITY, *order).conclude().chosen_variant == "a"


@pytest.mark.parametrize(
    ("figures", "missed"),
    [
        ({"tokens_per_second": 5.0}, 0),
        ({"tokens_per_second": 4.9}, 1),
        ({"tokens_per_second": 0.0}, 0),
        ({"ttft_seconds": 0.5}, 0),
        ({"ttft_seconds": 0.51}, 1),
        ({"joules_per_token": 0.8}, 0),
        ({"joules_per_token": 0.81}, 1),
        ({"tokens_per_second": 1, "ttft_seconds": 1, "joules_per_token": 1}, 3),
        ({}, 0),
    ],
)
def test_a_figure_at_its_limit_does_not_miss_it(figures: dict[str, Any], missed: int) -> None:
    policy = SelectionPolicy(
        min_tokens_per_second=5, max_ttft_seconds=0.5, max_joules_per_token=0.8
    )
    assert len(missed_limits(Figures(**figures), policy, "tokens/s")) == missed
