"""The memory estimate: corrected by loads, and at shorter contexts."""

from dataclasses import replace

import msgspec
import pytest

from agent.selection import Measurement, rank
from agent.selection.memory_prediction import memory_model, process_bytes
from artifact.manifest import SelectionPolicy, SlotPolicy, Task, Variant
from tests.agent.selection.test_ranking import FACTS, GIB, bare, component, variant, why

MIB = 1 << 20
# 4 GiB of weights and buffers, and half a MiB for each of 4096 tokens.
LONG = Variant(
    name="long",
    runtime="llama_cpp",
    format="gguf",
    quantization="q4_k_m",
    files=variant("x", 4).files,
    memory_bytes=6 * GIB,
    context_length=4096,
    context_bytes=MIB // 2,
)


def load(
    name: str, estimated: float, took: float, *, runtime: str = "llama_cpp", model: str = "a/b@1"
) -> Measurement:
    """Return the measurement of a load; sizes in GiB."""
    return Measurement(
        model=model,
        variant=name,
        task=Task.TEXT_GENERATION,
        runtime=runtime,
        quantization="q4_k_m",
        size_bytes=GIB,
        parameters=0,
        context_length=2048,
        estimated_memory_bytes=int(estimated * GIB),
        memory_bytes=int(took * GIB),
        tokens_per_second=10,
        ttft_seconds=0.1,
    )


def test_what_its_own_load_took_here_is_what_a_variant_needs() -> None:
    tight = variant("tight", 3)
    known = bare(FACTS, [load("tight", 3.3, 4.1, model="demo/model@1")])
    decision = rank(component(tight), SelectionPolicy(), known)
    assert why(decision, "tight").startswith("needs 4.1 GiB, budget 3.8 GiB (took 4.1 GiB when")
    assert not rank(component(tight), SelectionPolicy(), bare(FACTS)).nothing_fits


def test_loads_of_like_models_correct_the_estimate_and_it_is_said() -> None:
    other = variant("other", 3)
    known = bare(FACTS, [load("q4", 2.0, 2.5), load("q8", 2.0, 2.7)])
    decision = rank(component(other), SelectionPolicy(), known)
    assert "(estimate x 1.30, as loading llama_cpp models took here)" in why(decision, "other")
    assert decision.candidate("other").predicted_memory_bytes == pytest.approx(4.29 * GIB, rel=0.01)


@pytest.mark.parametrize(
    "unlike", [load("tiny", 0.1, 0.3), load("onnx", 2, 3, runtime="onnx"), load("huge", 40, 80)]
)
def test_loads_of_another_runtime_or_size_do_not(unlike: Measurement) -> None:
    assert memory_model(variant("v", 2), "demo/model@1", [unlike], {}).why == ""


@pytest.mark.parametrize(("took", "factor"), [(0.1, 0.8), (90.0, 2.0)])
def test_a_correction_is_bounded(took: float, factor: float) -> None:
    model = memory_model(variant("v", 2), "demo/model@1", [load("q4", 2.0, took)], {})
    assert model.bytes_at(2048) == pytest.approx(2.2 * GIB * factor, rel=0.001)


def test_a_shorter_context_is_told_and_taken_only_as_the_release_allows() -> None:
    policy = SelectionPolicy(slots={"chat": SlotPolicy(max_memory_bytes=5 * GIB)})
    known = bare(replace(FACTS, model_memory_bytes=8 * GIB))
    told = why(rank(component(LONG), policy, known), "long")
    assert told == (
        "needs 6.0 GiB, budget 5.0 GiB; fits with context <= 2048, the release asks for 4096"
    )
    asked = SelectionPolicy(max_memory_bytes=5 * GIB, min_context_length=2049)
    assert "the release asks for 2049" in why(rank(component(LONG), asked, known), "long")
    asked = SelectionPolicy(max_memory_bytes=5 * GIB, min_context_length=1024)
    taken = rank(component(LONG), asked, known).candidate("long")
    assert (taken.bucket, taken.context_length) == ("ranked", 2048)
    assert taken.predicted_memory_bytes == 5 * GIB
    assert "with a context of 2048 instead of 4096" in taken.reason
    too_small = rank(component(LONG), SelectionPolicy(), bare(FACTS))
    assert why(too_small, "long") == "needs 6.0 GiB, budget 3.8 GiB"


def test_the_whole_context_is_never_shortened_without_need() -> None:
    asked = SelectionPolicy(min_context_length=64)
    fits = rank(component(variant("v", 1)), asked, bare(FACTS)).candidate("v")
    assert fits.context_length == 0


def test_without_bytes_per_token_no_shorter_context_is_known_to_fit() -> None:
    unknown = msgspec.structs.replace(LONG, context_bytes=0)
    model = memory_model(unknown, "demo/model@1", [], {})
    assert model.longest_context(6 * GIB) == 4096
    assert model.longest_context(5 * GIB) == 0


def test_adapters_and_process_add_to_the_estimate() -> None:
    model = memory_model(LONG, "demo/model@1", [], {"llama_cpp": 3 * MIB})
    assert model.bytes_at(4096) == 6 * GIB + 3 * MIB
    assert model.with_more(2 * MIB).bytes_at(4096) == 6 * GIB + 5 * MIB
    # Half a MiB for each token that is not served.
    assert model.bytes_at(4094) == 6 * GIB + 2 * MIB
    assert model.bytes_at(-100_000_000) == 0


def test_a_corrected_estimate_shortens_the_context_by_its_factor() -> None:
    model = memory_model(LONG, "demo/model@1", [load("other", 6, 9)], {})
    assert model.factor == 1.5
    # Whole: 9 GiB. Each token saves three quarters of a MiB, so 768 MiB less takes 1,024 tokens.
    assert model.longest_context(9 * GIB) == 4096
    assert model.longest_context(9 * GIB - 768 * MIB) == 4096 - 1024


def test_an_incredibly_small_load_is_bounded_at_half_of_the_estimate() -> None:
    model = memory_model(LONG, "demo/model@1", [load("long", 6, 0.5, model="demo/model@1")], {})
    assert model.bytes_at(4096) == 3 * GIB


def test_a_load_without_a_measured_peak_says_nothing() -> None:
    nothing = [load("long", 6, 0, model="demo/model@1"), load("other", 6, 0)]
    model = memory_model(LONG, "demo/model@1", nothing, {})
    assert (model.factor, model.offset_bytes, model.why) == (1.0, 0, "")


def test_adapters_and_the_process_are_added_to_the_model() -> None:
    model = memory_model(LONG, "a/b@1", [], {"llama_cpp": 100, "onnx": 700})
    assert model.bytes_at(LONG.context_length) == LONG.memory_bytes + 100
    assert model.with_more(50).bytes_at(LONG.context_length) == LONG.memory_bytes + 150
    assert process_bytes("tpu", {"llama_cpp": 100, "onnx": 700}) == 700


def test_a_load_of_less_than_half_of_the_estimate_is_not_believed() -> None:
    tiny = load(LONG.name, 6, 0.1)
    found = memory_model(LONG, tiny.model, [tiny], {})
    assert found.bytes_at(LONG.context_length) == LONG.memory_bytes // 2
    unknown = replace(tiny, memory_bytes=0)
    assert memory_model(LONG, tiny.model, [unknown], {}).why == ""


def test_a_budget_that_the_whole_context_just_fits_is_enough() -> None:
    model = memory_model(LONG, "a/b@1", [], {})
    whole = model.bytes_at(LONG.context_length)
    assert model.longest_context(whole) == LONG.context_length
    assert model.longest_context(whole - 1) == LONG.context_length - 64
    half_more = replace(model, factor=1.5)
    over = half_more.bytes_at(LONG.context_length) - MIB * 48
    assert half_more.longest_context(over) == LONG.context_length - 64
    assert (
        replace(model, variant=msgspec.structs.replace(LONG, context_bytes=0)).longest_context(
            whole - 1
        )
        == 0
    )
