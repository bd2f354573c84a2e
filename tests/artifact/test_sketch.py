from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.errors import InvalidSketchError
from artifact.sketch import MAX_VALUE, RELATIVE_ACCURACY, Sketch, check_sketch

values = st.one_of(st.just(0.0), st.floats(1e-9, 1e9))
streams = st.lists(values, max_size=60)


@given(st.lists(values, min_size=1, max_size=60), st.floats(0, 1))
def test_quantile_is_within_the_relative_accuracy(stream: list[float], fraction: float) -> None:
    exact = sorted(stream)[int(fraction * (len(stream) - 1))]
    found = Sketch.of(stream).quantile(fraction)
    assert found == pytest.approx(exact, rel=RELATIVE_ACCURACY * 1.0001, abs=0)


@given(streams, streams)
def test_merging_equals_one_sketch_of_both_streams(one: list[float], two: list[float]) -> None:
    merged, whole = Sketch.of(one).merge(Sketch.of(two)), Sketch.of(one + two)
    assert merged.bins == whole.bins
    assert merged.zeros == whole.zeros
    assert merged.count == len(one) + len(two)
    assert merged.sum == pytest.approx(whole.sum)


@given(streams)
def test_every_sketch_that_we_make_passes_the_check(stream: list[float]) -> None:
    check_sketch(Sketch.of(stream))


def test_bins_are_the_papers() -> None:
    gamma = (1 + RELATIVE_ACCURACY) / (1 - RELATIVE_ACCURACY)
    assert Sketch.of([1.0]).bins == {0: 1}
    assert Sketch.of([gamma**10 * 0.9999]).bins == {10: 1}


def test_merge_leaves_its_parts_alone() -> None:
    one, two = Sketch.of([1.0]), Sketch.of([1.0, 2.0])
    one.merge(two)
    assert (one.count, two.count) == (1, 2)


def test_empty_sketch_has_no_quantile() -> None:
    assert Sketch().quantile(0.95) is None


def test_values_beyond_the_bounds_count_as_the_bound() -> None:
    assert Sketch.of([1e12]).quantile(1) == pytest.approx(MAX_VALUE, rel=RELATIVE_ACCURACY)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_impossible_durations_are_refused(value: float) -> None:
    with pytest.raises(InvalidSketchError, match="not a duration"):
        Sketch.of([value])


@pytest.mark.parametrize(
    "change",
    [
        {"relative_accuracy": 0.02},
        {"bins": {100_000: 1}},
        {"bins": {0: 0}},
        {"bins": {0: 1 << 60}},
        {"zeros": -1},
        {"sum": float("nan")},
    ],
)
def test_sketch_from_outside_is_bounded(change: dict[str, object]) -> None:
    with pytest.raises(InvalidSketchError):
        check_sketch(replace(Sketch(), **change))  # type: ignore[arg-type]


def test_sketches_of_different_accuracy_do_not_add_up() -> None:
    with pytest.raises(InvalidSketchError, match="do not add up"):
        Sketch.of([1.0]).merge(Sketch.of([1.0], relative_accuracy=0.05))
