"""The predicted speed: measured here, by the hardware class, or by the calibrated roofline."""

import itertools
from dataclasses import replace
from statistics import median

import msgspec
import numpy as np
import pytest

from agent.selection import Measurement, Prior, Source
from agent.selection.speed_prediction import (
    CONSTANT_MATRICES,
    PULL,
    RESIDUAL_PULL,
    TOKEN_SECONDS,
    TOKEN_SHARE,
    UNIT_MATRICES,
    Predictor,
    _fit,
    _units,
    weight_rate,
)
from artifact.device_facts import MicroBenchmark
from artifact.manifest import File, Task, Variant

BENCHMARK = MicroBenchmark(
    memory_bytes_per_second=10e9,
    matmul_flops_per_second=100e9,
    weight_bytes_per_second={"f16": 10e9, "q8_0": 8e9, "q4_k": 5e9, "q6_k": 6e9, "q5_k": 5e9},
)
BITS = {"f16": 16.0, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q4_k_m": 4.9}
MODEL = "acme/m@1"


def variant(quantization: str, parameters: float) -> Variant:
    size = int(parameters * BITS[quantization] / 8)
    return Variant(
        name=quantization,
        runtime="llama_cpp",
        format="gguf",
        quantization=quantization,
        files=(File(name="m", size=size, sha256="0" * 64, index="0" * 64),),
        memory_bytes=size,
        parameters=int(parameters),
        # Larger models have more layers.
        matrices=int(16 * (parameters / 1e6) ** 0.45),
    )


def speed(predictor: Predictor, one: Variant) -> float:
    return predictor.predict(one).figures.tokens_per_second


def truth(one: Variant) -> float:
    """Return the tokens/s of a box below its roofline, by a factor that depends on quantization."""
    odd = {"q4_k_m": 0.9, "q5_k_m": 1.15}.get(one.quantization, 1.0)
    seconds = 1.6 * odd * one.size_bytes / weight_rate(BENCHMARK, one.quantization)
    return 1 / (seconds + 100e-6 + 10e-6 * one.matrices)


def measured(one: Variant, model: str = MODEL) -> Measurement:
    return Measurement(
        model=model,
        variant=one.name,
        task=Task.TEXT_GENERATION,
        runtime=one.runtime,
        quantization=one.quantization,
        size_bytes=one.size_bytes,
        parameters=one.parameters,
        matrices=one.matrices,
        context_length=512,
        estimated_memory_bytes=one.memory_bytes,
        memory_bytes=one.memory_bytes,
        tokens_per_second=truth(one),
        ttft_seconds=one.parameters * 1e-9,
        joules_per_token=20 / truth(one),
    )


def predictor(*known: Measurement, benchmark: MicroBenchmark = BENCHMARK) -> Predictor:
    return Predictor(MODEL, Task.TEXT_GENERATION, benchmark, known)


def error(known: list[Measurement], one: Variant) -> float:
    predicted = predictor(*known).predict(one)
    assert predicted.source is Source.CALIBRATED
    return abs(predicted.figures.tokens_per_second / truth(one) - 1)


def test_a_rate_is_of_the_kernel_with_the_longest_fitting_name() -> None:
    rates = MicroBenchmark(
        memory_bytes_per_second=9, weight_bytes_per_second={"q4": 1, "q4_k": 2, "q5_k": 3}
    )
    assert weight_rate(rates, "q4_k_m") == 2
    assert weight_rate(rates, "q4_0") == 1
    assert weight_rate(rates, "int8") == 9


def test_without_measurements_it_is_the_bare_roofline() -> None:
    one = variant("q4_k_m", 350e6)
    found = predictor().predict(one)
    assert found.source is Source.ROOFLINE
    assert found.figures.tokens_per_second == pytest.approx(5e9 / one.size_bytes)
    # Sixteen tokens of two operations per weight.
    assert found.figures.ttft_seconds == pytest.approx(16 * 2 * 350e6 / 100e9)
    assert predictor(benchmark=MicroBenchmark()).predict(one).figures.tokens_per_second == 0


def test_an_embedding_model_takes_the_arithmetic_of_a_whole_text() -> None:
    whole, eighth = (variant(name, 1e6) for name in ("f16", "q8_0"))
    embedding = replace(predictor(), task=Task.EMBEDDING)
    # Sixteen tokens of two operations per weight; reading those takes a tenth of it, here.
    assert speed(embedding, whole) == pytest.approx(100e9 / (16 * 2 * 1e6))
    fast = replace(embedding, benchmark=replace(BENCHMARK, int8_operations_per_second=200e9))
    assert fast.predict(whole) == embedding.predict(whole)
    assert speed(fast, eighth) == pytest.approx(200e9 / (16 * 2 * 1e6))
    # Reading the weights bounds the speed however fast the arithmetic is.
    endless = replace(embedding, benchmark=replace(BENCHMARK, matmul_flops_per_second=1e15))
    assert speed(endless, whole) == pytest.approx(10e9 / whole.size_bytes)


def test_an_embedding_model_is_calibrated_in_texts() -> None:
    one = variant("f16", 1e6)
    known = replace(measured(one, "acme/other@1"), task=Task.EMBEDDING, tokens_per_second=1000)
    found = replace(predictor(known), task=Task.EMBEDDING).predict(one)
    assert found.source is Source.CALIBRATED
    assert found.figures.tokens_per_second == pytest.approx(1000, rel=0.2)


def test_every_other_pair_of_variants_is_predicted_within_15_percent() -> None:
    variants = [variant(name, 350e6) for name in BITS]
    errors = [
        error([measured(each) for each in known], one)
        for known in itertools.combinations(variants, 2)
        for one in variants
        if one not in known
    ]
    assert median(errors) < 0.15


def test_another_models_variants_predict_this_ones_by_quantization() -> None:
    known = [measured(variant(name, 120e6), "acme/small@1") for name in BITS]
    errors = [error(known, variant(name, 350e6)) for name in BITS]
    assert median(errors) < 0.15


def test_one_measurement_already_brings_the_rest_closer() -> None:
    one, other = variant("q8_0", 350e6), variant("f16", 350e6)
    bare = predictor().predict(other).figures.tokens_per_second
    assert error([measured(one)], other) < 0.15 < abs(bare / truth(other) - 1)


def test_other_runtimes_and_tasks_say_nothing() -> None:
    strange = replace(measured(variant("q8_0", 350e6)), runtime="onnx")
    classifier = replace(measured(variant("f16", 350e6)), task=Task.TENSOR)
    assert predictor(strange, classifier).predict(variant("q6_k", 1e8)).source is Source.ROOFLINE


def test_its_own_measurement_comes_before_the_class_and_that_before_the_roofline() -> None:
    one = variant("q4_k_m", 350e6)
    priors = {"q4_k_m": Prior(tokens_per_second=7, joules_per_token=0.5)}
    known = replace(predictor(measured(variant("q8_0", 350e6))), priors=priors)
    found = known.predict(one)
    assert (found.source, found.figures.tokens_per_second) == (Source.HARDWARE_CLASS, 7)
    found = replace(known, measured=[measured(one)]).predict(one)
    assert (found.source, found.figures.tokens_per_second) == (Source.MEASURED_HERE, truth(one))


def test_energy_and_ttft_follow_what_was_measured() -> None:
    one = variant("q6_k", 700e6)
    found = predictor(measured(variant("q8_0", 350e6))).predict(one)
    # Energy per token is the same power times the token's time.
    assert found.figures.joules_per_token == pytest.approx(20 / found.figures.tokens_per_second)
    assert found.figures.ttft_seconds == pytest.approx(0.7)


@pytest.mark.parametrize("times", [(0.12, 0.2, 0.31), (0.1, 0.2, 0.4)])
def test_the_fit_solves_its_ridge_regression(times: tuple[float, ...]) -> None:
    """The oracle is NumPy's least squares on the same rows and priors, without a constant < 0."""
    bares, units, weights = (0.1, 0.15, 0.3), (1.0, 1.5, 2.0), (1.0, 0.5, 0.25)
    pull_c = PULL / (TOKEN_SHARE * median(times)) ** 2
    rows = [
        [np.sqrt(w) * bare / time, np.sqrt(w) * unit / time]
        for bare, unit, time, w in zip(bares, units, times, weights, strict=True)
    ]
    right = [np.sqrt(w) for w in weights]
    rows += [[np.sqrt(PULL), 0.0], [0.0, np.sqrt(pull_c)]]
    right += [np.sqrt(PULL), np.sqrt(pull_c) * TOKEN_SECONDS]
    matrix, wanted = np.array(rows), np.array(right)
    slowness, constant = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
    if constant < 0:
        (slowness,), constant = np.linalg.lstsq(matrix[:, :1], wanted, rcond=None)[0], 0.0
    assert _fit(bares, units, times, weights) == pytest.approx((slowness, constant))


def test_with_one_measurement_of_the_same_quantization_the_oracle_agrees() -> None:
    """The calibrated roofline and the residual of its quantization, computed step by step."""
    known, wanted = measured(variant("q8_0", 350e6), "acme/o@1"), variant("q8_0", 700e6)
    bare = known.size_bytes / 8e9
    taken = 1 / known.tokens_per_second
    likeness = 1 / (1 + abs(np.log2(wanted.size_bytes / known.size_bytes)))
    slowness, constant = _fit([bare], [_units(known.matrices)], [taken], [likeness])
    residual = np.log(taken / (slowness * bare + constant * _units(known.matrices)))
    left = likeness * residual / (likeness + RESIDUAL_PULL)
    seconds = (slowness * wanted.size_bytes / 8e9 + constant * _units(wanted.matrices)) * np.exp(
        left
    )
    found = predictor(known).predict(wanted).figures
    assert found.tokens_per_second == pytest.approx(1 / seconds)
    # 20 W, whatever the speed.
    assert found.joules_per_token == pytest.approx(20 * seconds)
    assert found.ttft_seconds == pytest.approx(wanted.parameters * 1e-9)


def test_the_constant_counts_in_units_of_matrices() -> None:
    assert _units(0) == 1.0
    assert _units(UNIT_MATRICES - CONSTANT_MATRICES) == pytest.approx(1.0)
    assert _units(2 * UNIT_MATRICES - CONSTANT_MATRICES) == pytest.approx(2.0)


def test_without_a_rate_for_one_type_of_weights_no_speed_is_predicted() -> None:
    mixed = msgspec.structs.replace(variant("q8_0", 1e8), decode_bytes={"q8_0": 10, "iq2": 10})
    blind = replace(BENCHMARK, memory_bytes_per_second=0)
    assert predictor(benchmark=blind).predict(mixed).figures.tokens_per_second == 0.0


def test_measurements_without_a_speed_or_a_ttft_are_left_out() -> None:
    one = variant("q8_0", 350e6)
    known = measured(one, "acme/o@1")
    stopped = replace(known, tokens_per_second=0)
    assert predictor(stopped).predict(one).source is Source.ROOFLINE
    silent = replace(measured(variant("f16", 350e6), "acme/o@1"), ttft_seconds=0)
    with_ttft = predictor(known).predict(one).figures.ttft_seconds
    assert predictor(known, silent).predict(one).figures.ttft_seconds == with_ttft


def test_a_kernel_that_was_not_measured_leaves_the_speed_unknown() -> None:
    part = MicroBenchmark(weight_bytes_per_second={"q4_k": 5e9})
    one = msgspec.structs.replace(
        variant("q4_k_m", 350e6), decode_bytes={"q4_k": 10**8, "f16": 10**8}
    )
    found = replace(predictor(), benchmark=part).predict(one)
    assert found.figures.tokens_per_second == 0.0


def test_a_measurement_without_speed_calibrates_nothing() -> None:
    failed = replace(measured(variant("q8_0", 350e6), "a/other@1"), tokens_per_second=0.0)
    one = variant("q4_k_m", 350e6)
    found = replace(predictor(), measured=[failed]).predict(one)
    assert found == predictor().predict(one)
    assert found.source is Source.ROOFLINE


def test_ttft_is_calibrated_by_measurements_that_have_it() -> None:
    one, other = variant("q4_k_m", 350e6), variant("q8_0", 350e6)
    known = replace(measured(other, "a/other@1"), ttft_seconds=0.7)
    for useless in (replace(known, ttft_seconds=0.0), replace(known, parameters=0)):
        found = replace(predictor(), measured=[known, useless]).predict(one)
        assert found.figures.ttft_seconds == pytest.approx(0.7)


def test_a_fit_never_has_a_negative_constant() -> None:
    """The large model is slower than its size says: only a negative constant would fit both."""
    slowness, constant = _fit([1.0, 4.0], [1.0, 1.0], [0.5, 8.0], [1.0, 1.0])
    assert constant == 0.0
    # Least squares of the relative errors with the prior s = 1.
    assert slowness == pytest.approx((PULL + 2.0 + 0.5) / (PULL + 4.0 + 0.25))
