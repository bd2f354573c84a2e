"""Ranking: the variants that fit, their order, and the reasons given."""

from dataclasses import replace
from functools import partial

import msgspec
import pytest

from agent.selection import Decision, Figures, Knowledge, Measurement, Prior, rank
from artifact.device_facts import DeviceFacts, MicroBenchmark
from artifact.manifest import (
    Component,
    File,
    ModelVersion,
    Objective,
    Quality,
    SelectionPolicy,
    Task,
    Variant,
)

GIB = 1 << 30
FACTS = DeviceFacts(
    architecture="x86_64",
    cpu_model="test",
    isa=("avx2", "fma"),
    cores=4,
    memory_bytes=8 * GIB,
    model_memory_bytes=int(3.8 * GIB),
    benchmark=MicroBenchmark(memory_bytes_per_second=20e9),
    runtimes={"llama_cpp": "1", "onnx": "2"},
)
# Figures of the models alone: tests/agent/selection/test_shares.py adds the worker processes.
bare = partial(Knowledge, process_bytes={})
KNOWN = bare(FACTS)


def variant(
    name: str,
    size_gib: float,
    *,
    perplexity: float | None = None,
    runtime: str = "llama_cpp",
    required_isa: tuple[str, ...] = (),
) -> Variant:
    size = int(size_gib * GIB)
    return Variant(
        name=name,
        runtime=runtime,
        format="gguf",
        quantization=name,
        files=(File(name="m.gguf", size=size, sha256="0" * 64, index="0" * 64),),
        memory_bytes=int(size * 1.1),
        context_length=2048,
        required_isa=required_isa,
        quality=None
        if perplexity is None
        else Quality(
            metric="perplexity", value=perplexity, higher_is_better=False, dataset="heldout"
        ),
    )


def component(*variants: Variant, max_memory_bytes: int = 0) -> Component:
    model = ModelVersion(
        name="demo/model", version="1", task=Task.TEXT_GENERATION, variants=variants
    )
    return Component(slot="chat", model=model, max_memory_bytes=max_memory_bytes)


F16 = variant("f16", 4.64, perplexity=7.0)
Q8 = variant("q8-0", 2.5, perplexity=7.01)
Q4 = variant("q4-k-m", 1.5, perplexity=7.31)
NAMES = ("f16", "q8-0", "q4-k-m")


def order(decision: Decision) -> list[str]:
    return [c.variant for c in decision.candidates if c.bucket == "ranked"]


def why(decision: Decision, name: str) -> str:
    candidate = decision.candidate(name)
    assert candidate.bucket == "excluded"
    return candidate.reason


def test_the_rest_are_excluded_with_what_they_need() -> None:
    decision = rank(component(F16, Q8, Q4), SelectionPolicy(), KNOWN)
    assert order(decision) == ["q4-k-m", "q8-0"]
    assert why(decision, "f16") == "needs 5.1 GiB, budget 3.8 GiB"
    assert decision.memory_budget_bytes == FACTS.model_memory_bytes
    assert decision.objective is Objective.TOKENS_PER_SECOND
    assert "no power meter" in decision.reason


def test_the_components_own_budget_is_the_smaller() -> None:
    decision = rank(component(Q8, Q4, max_memory_bytes=2 * GIB), SelectionPolicy(), KNOWN)
    assert order(decision) == ["q4-k-m"]
    assert why(decision, "q8-0") == "needs 2.8 GiB, budget 2.0 GiB"


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (variant("odd", 1, runtime="tpu"), "runtime tpu is not installed here"),
        (
            variant("odd", 1, required_isa=("avx2", "avx512f", "amx_int8")),
            "needs avx512f, amx_int8, which this CPU lacks",
        ),
    ],
)
def test_what_cannot_run_here_is_excluded(odd: Variant, reason: str) -> None:
    decision = rank(component(odd, Q4), SelectionPolicy(), KNOWN)
    assert order(decision) == ["q4-k-m"]
    assert why(decision, "odd") == reason


def test_a_pin_is_the_only_one_allowed() -> None:
    policy = SelectionPolicy(pins={"chat": "q8-0"})
    decision = rank(component(F16, Q8, Q4), policy, KNOWN)
    assert order(decision) == ["q8-0"]
    assert why(decision, "q4-k-m") == "the release pins q8-0"
    too_big = rank(component(F16, Q4), SelectionPolicy(pins={"chat": "f16"}), KNOWN)
    assert too_big.nothing_fits
    assert "needs 5.1 GiB" in too_big.reason


def test_quality_loss_is_bounded_by_the_best_variant_of_all() -> None:
    policy = SelectionPolicy(max_quality_loss=0.02)
    decision = rank(component(F16, Q8, Q4), policy, KNOWN)
    assert order(decision) == ["q8-0"]
    assert why(decision, "q4-k-m") == (
        "perplexity 7.31 is 4.4% worse than the best (perplexity 7), 2.0% allowed"
    )
    unmeasured = rank(component(Q8, variant("raw", 1)), policy, KNOWN)
    assert "unmeasured" in why(unmeasured, "raw")


def test_speed_is_predicted_by_the_roofline_and_may_exclude() -> None:
    decision = rank(component(Q8, Q4), SelectionPolicy(min_tokens_per_second=10), KNOWN)
    predicted = decision.candidate("q4-k-m").predicted_tokens_per_second
    assert predicted == pytest.approx(20e9 / (1.5 * GIB))
    assert why(decision, "q8-0") == "predicted 7.5 tokens/s, 10 asked"


def test_an_embedding_models_arithmetic_is_no_bound_and_excludes_nothing() -> None:
    """Much of a multilingual model may be its token table, of which a token reads one row."""
    asked = SelectionPolicy(min_tokens_per_second=10)
    encoder = component(Q8, Q4)
    encoder = msgspec.structs.replace(
        encoder, model=msgspec.structs.replace(encoder.model, task=Task.EMBEDDING)
    )
    decision = rank(encoder, asked, KNOWN)
    assert order(decision) == ["q4-k-m", "q8-0"]
    assert decision.candidate("q8-0").doubt == "predicted 7.5 inferences/s, 10 asked"


def test_measurements_of_the_hardware_class_come_before_the_roofline() -> None:
    priors = {"q8-0": Prior(tokens_per_second=30, joules_per_token=0.5)}
    decision = rank(component(Q8, Q4), SelectionPolicy(), bare(FACTS, priors=priors))
    assert order(decision) == ["q8-0", "q4-k-m"]
    assert "same hardware class" in decision.candidate("q8-0").reason


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Objective.TOKENS_PER_SECOND, ["q4-k-m", "q8-0"]),
        (Objective.TOKENS_PER_JOULE, ["q4-k-m", "q8-0"]),
        (Objective.QUALITY, ["q8-0", "q4-k-m"]),
        (Objective.MEMORY, ["q4-k-m", "q8-0"]),
    ],
)
def test_each_objective_has_its_order(objective: Objective, expected: list[str]) -> None:
    decision = rank(component(Q8, Q4), SelectionPolicy(objective=objective), KNOWN)
    assert order(decision) == expected


def test_nothing_fits_is_said_with_every_reason() -> None:
    decision = rank(component(F16, variant("odd", 1, runtime="tpu")), SelectionPolicy(), KNOWN)
    assert decision.nothing_fits
    assert decision.next_candidate() is None
    assert "f16: needs 5.1 GiB" in decision.reason
    assert "odd: runtime tpu" in decision.reason


def measured(decision: Decision, name: str, speed: float, memory: int = GIB) -> Decision:
    return decision.with_measurement(name, Figures(tokens_per_second=speed, memory_bytes=memory))


def test_a_measurement_that_holds_settles_it() -> None:
    decision = rank(component(Q8, Q4), SelectionPolicy(), KNOWN)
    assert decision.next_candidate() == "q4-k-m"
    decision = measured(decision, "q4-k-m", 12)
    assert decision.next_candidate() is None
    decision = decision.conclude()
    assert decision.chosen_variant == "q4-k-m"
    assert decision.candidate("q4-k-m").bucket == "chosen"
    assert decision.candidate("q8-0").bucket == "ranked"


def test_the_same_runtimes_roofline_is_corrected_before_it_tempts() -> None:
    # Predicted 12.4 tokens/s, measured 5: q8-0's predicted 7.5 are corrected to 3.
    decision = measured(rank(component(Q8, Q4), SelectionPolicy(), KNOWN), "q4-k-m", 5)
    assert decision.next_candidate() is None
    other = variant("int4", 1.6, runtime="onnx")
    decision = measured(rank(component(other, Q4), SelectionPolicy(), KNOWN), "q4-k-m", 5)
    assert decision.next_candidate() == "int4"
    decision = measured(decision, "int4", 9).conclude()
    assert decision.chosen_variant == "int4"
    assert "2 tried" in decision.reason


def test_what_is_computed_to_come_close_may_be_better_and_is_tried() -> None:
    near, far = variant("near", 1.6), variant("far", 1.8)
    decision = measured(rank(component(near, far, Q4), SelectionPolicy(), KNOWN), "q4-k-m", 12)
    assert decision.next_candidate() == "near"
    decision = measured(decision, "near", 12.5)
    assert decision.next_candidate() is None
    assert decision.conclude().chosen_variant == "near"


def test_what_disappoints_gives_way() -> None:
    policy = SelectionPolicy(min_tokens_per_second=7)
    decision = rank(component(Q8, Q4), policy, KNOWN)
    decision = measured(decision, "q4-k-m", 6.5)
    assert why(decision, "q4-k-m") == "measured 6.5 tokens/s, 7 asked"
    assert decision.next_candidate() == "q8-0"
    decision = measured(decision, "q8-0", 7.2, memory=4 * GIB)
    assert why(decision, "q8-0") == "took 4.0 GiB, budget 3.8 GiB"
    assert decision.conclude().chosen_variant == ""


def test_a_failure_gives_way_too_and_tries_are_bounded() -> None:
    policy = SelectionPolicy(max_candidates=2)
    tiny = variant("q2-k", 1)
    decision = rank(component(Q8, Q4, tiny), policy, KNOWN)
    assert decision.next_candidate() == "q2-k"
    decision = decision.with_failure("q2-k", "perplexity 99 over 10 tokens, at most 9 allowed")
    assert decision.next_candidate() == "q4-k-m"
    decision = decision.with_failure("q4-k-m", "did not load")
    assert decision.next_candidate() is None
    concluded = decision.conclude()
    assert concluded.chosen_variant == ""
    assert why(concluded, "q2-k").startswith("perplexity 99")


def test_quality_does_not_give_way_to_speed() -> None:
    policy = SelectionPolicy(objective=Objective.QUALITY)
    decision = measured(rank(component(Q8, Q4), policy, KNOWN), "q8-0", 0.5)
    assert decision.next_candidate() is None
    assert decision.conclude().chosen_variant == "q8-0"


def test_energy_decides_where_it_is_metered() -> None:
    priors = {
        "q8-0": Prior(tokens_per_second=10, joules_per_token=0.5),
        "q4-k-m": Prior(tokens_per_second=20, joules_per_token=0.7),
    }
    decision = rank(component(Q8, Q4), SelectionPolicy(), bare(FACTS, priors=priors, metered=True))
    assert decision.objective is Objective.TOKENS_PER_JOULE
    assert order(decision) == ["q8-0", "q4-k-m"]
    decision = decision.with_measurement(
        "q8-0", Figures(tokens_per_second=10, memory_bytes=GIB, joules_per_token=0.9)
    )
    # The hardware class measured 0.7 for the other variant.
    assert decision.next_candidate() == "q4-k-m"
    decision = decision.with_measurement(
        "q4-k-m", Figures(tokens_per_second=15, memory_bytes=GIB, joules_per_token=1.0)
    )
    assert decision.conclude().chosen_variant == "q8-0"


# The slower one comes first by name, so that only its speed can rank it last.
TIED_SLOW = variant("a-slow", 2.5, perplexity=7.0)
TIED_FAST = variant("b-fast", 1.5, perplexity=7.0)


@pytest.mark.parametrize("variants", [(TIED_SLOW, TIED_FAST), (TIED_FAST, TIED_SLOW)])
def test_ties_rank_the_faster_variant_first(variants: tuple[Variant, ...]) -> None:
    policy = SelectionPolicy(objective=Objective.QUALITY)
    assert order(rank(component(*variants), policy, KNOWN)) == ["b-fast", "a-slow"]


def test_a_measured_tie_is_won_by_the_faster_variant() -> None:
    decision = rank(
        component(TIED_SLOW, TIED_FAST), SelectionPolicy(objective=Objective.QUALITY), KNOWN
    )
    for name, speed in (("b-fast", 5.0), ("a-slow", 9.0)):
        decision = decision.with_measurement(
            name, Figures(tokens_per_second=speed, memory_bytes=GIB)
        )
    assert decision.conclude().chosen_variant == "a-slow"


def test_an_equal_prediction_is_not_tried_beside_a_measured_one() -> None:
    decision = rank(
        component(TIED_SLOW, TIED_FAST), SelectionPolicy(objective=Objective.QUALITY), KNOWN
    )
    assert measured(decision, "b-fast", 5.0).next_candidate() is None


def test_by_memory_the_smallest_measured_one_is_chosen() -> None:
    decision = rank(component(Q8, Q4), SelectionPolicy(objective=Objective.MEMORY), KNOWN)
    decision = measured(decision, "q4-k-m", 9.0, memory=2 * GIB)
    decision = measured(decision, "q8-0", 7.0, memory=3 * GIB)
    assert decision.conclude().chosen_variant == "q4-k-m"


def test_by_quality_an_unmeasured_one_is_last() -> None:
    raw = variant("raw", 1)
    decision = rank(component(raw, Q8), SelectionPolicy(objective=Objective.QUALITY), KNOWN)
    assert order(decision) == ["q8-0", "raw"]
    decision = measured(measured(decision, "q8-0", 7.0), "raw", 20.0)
    assert decision.conclude().chosen_variant == "q8-0"


def test_speeds_below_one_token_per_second_correct_the_roofline_too() -> None:
    benchmark = replace(FACTS.benchmark, memory_bytes_per_second=1e9)
    slow = bare(replace(FACTS, benchmark=benchmark))
    decision = rank(component(Q8, Q4), SelectionPolicy(), slow)
    assert decision.candidate("q4-k-m").predicted_tokens_per_second < 1
    # Predicted 0.62 tokens/s, measured 0.25: q8-0's predicted 0.37 are corrected to 0.15.
    assert measured(decision, "q4-k-m", 0.25).next_candidate() is None


def test_a_quality_loss_of_exactly_the_allowed_is_kept() -> None:
    best, lossy = variant("best", 2, perplexity=8.0), variant("lossy", 1, perplexity=10.0)
    policy = SelectionPolicy(max_quality_loss=0.25)
    assert set(order(rank(component(best, lossy), policy, KNOWN))) == {"best", "lossy"}


def test_an_unknown_variant_is_a_key_error() -> None:
    decision = rank(component(Q4), SelectionPolicy(), KNOWN)
    with pytest.raises(KeyError, match="gone"):
        decision.candidate("gone")
    assert decision.candidate("q4-k-m").doubt == ""


def test_without_any_bound_there_is_no_memory_budget() -> None:
    unknown = bare(replace(FACTS, memory_bytes=0, model_memory_bytes=0))
    assert rank(component(Q4), SelectionPolicy(), unknown).memory_budget_bytes == 0


def test_a_rooflines_ttft_is_too_rough_to_cast_doubt() -> None:
    slow = replace(FACTS, benchmark=replace(FACTS.benchmark, matmul_flops_per_second=1e9))
    known = Knowledge(slow)
    (one,) = component(msgspec.structs.replace(Q4, parameters=10**9)).model.variants
    policy = SelectionPolicy(max_ttft_seconds=0.5)
    candidate = rank(component(one), policy, known).candidate("q4-k-m")
    assert candidate.predicted_ttft_seconds is not None
    assert candidate.predicted_ttft_seconds > 0.5
    assert (candidate.bucket, candidate.doubt) == ("ranked", "")
    # The same TTFT by a measurement of another variant does.
    measured = Measurement(
        model="demo/other@1",
        variant="x",
        task=Task.TEXT_GENERATION,
        runtime="llama_cpp",
        quantization="x",
        size_bytes=one.size_bytes,
        parameters=10**9,
        context_length=2048,
        estimated_memory_bytes=0,
        memory_bytes=0,
        tokens_per_second=5,
        ttft_seconds=2.0,
    )
    candidate = rank(component(one), policy, replace(known, measured=[measured])).candidate(
        "q4-k-m"
    )
    assert candidate.doubt == "predicted 2 s to the first token, 0.5 allowed"
    assert candidate.bucket == "ranked"


@pytest.mark.parametrize(("more", "doubted"), [(0, False), (1, True)])
def test_a_class_that_took_exactly_the_budget_casts_no_doubt(more: int, doubted: bool) -> None:
    taken = FACTS.model_memory_bytes + more
    priors = {"q4-k-m": Prior(tokens_per_second=9, memory_bytes=taken)}
    decision = rank(component(Q4), SelectionPolicy(), Knowledge(FACTS, priors=priors))
    assert bool(decision.candidate("q4-k-m").doubt) == doubted


@pytest.mark.parametrize(("value", "fits"), [(0.05, True), (0.2, False)])
def test_a_loss_against_a_best_of_zero_is_absolute(value: float, fits: bool) -> None:
    best, other = variant("best", 1, perplexity=0.0), variant("other", 1, perplexity=value)
    policy = SelectionPolicy(max_quality_loss=0.1)
    names = order(rank(component(best, other), policy, KNOWN))
    assert names == (["best", "other"] if fits else ["best"])


@pytest.mark.parametrize(("value", "fits"), [(1.5, True), (1.51, False)])
def test_a_loss_of_exactly_what_is_allowed_fits(value: float, fits: bool) -> None:
    best, other = variant("best", 1, perplexity=1.0), variant("other", 1, perplexity=value)
    policy = SelectionPolicy(max_quality_loss=0.5)
    assert ("other" in order(rank(component(best, other), policy, KNOWN))) == fits
