"""Measurements of a hardware class: medians of each device's newest, at most 256."""

from dataclasses import replace

from controlplane.fleet.class_measurements import (
    MAX_CLASS_MEASUREMENTS,
    VariantMeasurement,
    class_measurements,
)

ONE = VariantMeasurement(
    device="a",
    model="acme/m@1",
    variant="q4",
    tokens_per_second=10,
    memory_bytes=100,
    joules_per_token=None,
)
MODELS = {"acme/m@1"}


def test_a_device_that_lies_moves_the_median_little() -> None:
    told = [
        replace(ONE, device=name, tokens_per_second=speed, memory_bytes=memory)
        for name, speed, memory in (("a", 10, 100), ("b", 1e9, 1), ("c", 11, 110))
    ]
    (found,) = class_measurements(told, MODELS)
    assert (found.tokens_per_second, found.memory_bytes, found.devices) == (11, 100, 3)


def test_the_newest_of_a_device_counts() -> None:
    (found,) = class_measurements([replace(ONE, tokens_per_second=5), ONE], MODELS)
    assert (found.tokens_per_second, found.devices) == (5, 1)


def test_energy_is_of_those_that_have_a_meter() -> None:
    metered = replace(ONE, device="b", joules_per_token=0.5)
    (found,) = class_measurements([ONE, metered], MODELS)
    assert found.joules_per_token == 0.5
    (found,) = class_measurements([ONE], MODELS)
    assert found.joules_per_token is None


def test_other_models_and_untried_variants_are_left_out() -> None:
    other, untried = replace(ONE, model="acme/m@2"), replace(ONE, tokens_per_second=0)
    assert class_measurements([other, untried], MODELS) == ()


def test_they_are_bounded_and_the_best_known_stay() -> None:
    many = [replace(ONE, variant=f"v{number}") for number in range(300)]
    found = class_measurements([*many, replace(ONE, device="b", variant="v299")], MODELS)
    assert len(found) == MAX_CLASS_MEASUREMENTS
    assert found[0].variant == "v299"


def test_a_slow_device_counts_too() -> None:
    (found,) = class_measurements([replace(ONE, tokens_per_second=0.5)], MODELS)
    assert found.tokens_per_second == 0.5
