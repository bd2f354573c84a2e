from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.rollouts.strategy import Strategy, WaveSpec, parse_strategy
from controlplane.rollouts.waves import TargetDevice, assign_waves

fleets = st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), min_size=1, max_size=60).map(
    lambda rows: [TargetDevice(f"d{n}", row[0], row[1]) for n, row in enumerate(rows)]
)
strategies = st.one_of(
    st.just(Strategy()),
    st.builds(
        lambda count, half: Strategy(
            waves=(
                WaveSpec(name="canary", count=count),
                WaveSpec(name="half", percent=half),
                WaveSpec(name="full", percent=100),
            )
        ),
        st.integers(1, 20),
        st.floats(1, 99),
    ),
)


@given(fleets, strategies)
def test_every_device_is_in_exactly_one_wave(fleet: list[TargetDevice], strategy: Strategy) -> None:
    waves = assign_waves("r", fleet, strategy)
    assert set(waves) == {device.device_id for device in fleet}
    assert set(waves.values()) <= set(range(len(strategy.waves)))


@given(fleets, strategies)
def test_the_canary_has_each_class_that_the_rest_has(
    fleet: list[TargetDevice], strategy: Strategy
) -> None:
    waves = assign_waves("r", fleet, strategy)
    canary = {device.hardware_class for device in fleet if waves[device.device_id] == 0}
    assert canary == {device.hardware_class for device in fleet}


@given(fleets, strategies, st.randoms())
def test_cohorts_do_not_depend_on_the_order_of_the_devices(
    fleet: list[TargetDevice], strategy: Strategy, random: Random
) -> None:
    shuffled = list(fleet)
    random.shuffle(shuffled)
    assert assign_waves("r", fleet, strategy) == assign_waves("r", shuffled, strategy)


@given(fleets)
def test_a_canary_prefers_reachable_devices(fleet: list[TargetDevice]) -> None:
    waves = assign_waves("r", fleet, Strategy())
    for device in fleet:
        if waves[device.device_id] == 0 and not device.reachable:
            reachable = [
                other
                for other in fleet
                if other.hardware_class == device.hardware_class and other.reachable
            ]
            assert all(waves[other.device_id] == 0 for other in reachable)


def test_different_rollouts_have_different_canaries() -> None:
    fleet = [TargetDevice(f"d{n}", "a") for n in range(100)]
    first = [
        {device for device, wave in assign_waves(f"r{n}", fleet, Strategy()).items() if wave == 0}
        for n in range(5)
    ]
    assert all(len(canary) == 10 for canary in first)
    assert len({frozenset(canary) for canary in first}) == 5


def test_waves_are_as_large_as_asked_and_keep_the_mix() -> None:
    fleet = [TargetDevice(f"d{n}", "a" if n < 60 else "b") for n in range(100)]
    strategy = parse_strategy(
        "waves: [{name: canary, count: 5}, {name: half, percent: 50}, {name: full, percent: 100}]"
    )
    waves = assign_waves("r", fleet, strategy)
    assert Counter(waves.values()) == {0: 5, 1: 45, 2: 50}
    mix = Counter(
        fleet[int(device[1:])].hardware_class for device, wave in waves.items() if wave < 2
    )
    assert abs(mix["a"] - 30) <= 2


@pytest.mark.parametrize(
    ("devices", "percent", "first_wave"),
    [(10, 25, 3), (101, 10, 11), (3, 34, 2), (7, 1, 1), (100, 10, 10)],
)
def test_a_percentage_is_rounded_up(devices: int, percent: float, first_wave: int) -> None:
    fleet = [TargetDevice(f"d{n}", "a") for n in range(devices)]
    strategy = Strategy(
        waves=(WaveSpec(name="canary", percent=percent), WaveSpec(name="full", percent=100))
    )
    waves = Counter(assign_waves("r", fleet, strategy).values())
    assert waves == {0: first_wave, 1: devices - first_wave}


def test_a_single_device_is_the_canary_and_nothing_is_left() -> None:
    assert assign_waves("r", [TargetDevice("d", "a")], Strategy()) == {"d": 0}


def test_classes_are_interleaved_in_proportion() -> None:
    """Behind one device of each class come midpoints of the members' shares of their class."""
    fleet = [TargetDevice(f"d{n}", "a" if n < 4 else "b") for n in range(6)]
    strategy = Strategy(
        waves=(
            *(WaveSpec(name=f"w{n}", count=1) for n in range(5)),
            WaveSpec(name="full", percent=100),
        )
    )
    waves = assign_waves("r", fleet, strategy)
    of_class = {one.device_id: one.hardware_class for one in fleet}
    order = [of_class[device] for device, _ in sorted(waves.items(), key=lambda item: item[1])]
    # Shares: a 0.375, a 0.625, b 0.75, a 0.875. The first wave holds both heads.
    assert (sorted(order[:2]), order[2:]) == (["a", "b"], ["a", "a", "b", "a"])


def test_devices_are_reachable_unless_said_otherwise() -> None:
    assert TargetDevice("d", "a").reachable
