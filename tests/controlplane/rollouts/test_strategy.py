import pytest

from controlplane.errors import InvalidStrategyError
from controlplane.rollouts.strategy import (
    FailureGate,
    OnFailure,
    Strategy,
    decode_strategy,
    encode_strategy,
    parse_strategy,
)


def test_blank_is_a_canary_and_then_everyone_with_rollback() -> None:
    strategy = parse_strategy(" \n")
    assert strategy == Strategy()
    assert [(wave.name, wave.percent) for wave in strategy.waves] == [("canary", 10), ("full", 100)]
    assert strategy.on_failure is OnFailure.ROLLBACK
    assert strategy.gates.failure.percent_limit == 10


def test_yaml_and_json_say_the_same_and_come_back() -> None:
    yaml = """
waves:
  - {name: canary, count: 2, soak_seconds: 1.5}
  - {name: half, percent: 50}
  - {name: full, percent: 100}
gates: {failure: {max_failures: 3, min_executed: 2}}
on_failure: pause
silent_timeout_seconds: 30
max_unavailable: 5
"""
    strategy = parse_strategy(yaml)
    assert strategy.waves[0].count == 2
    assert strategy.gates.failure == FailureGate(max_failures=3, min_executed=2)
    assert strategy.gates.failure.percent_limit is None
    assert (strategy.on_failure, strategy.max_unavailable) == (OnFailure.PAUSE, 5)
    assert decode_strategy(encode_strategy(strategy)) == strategy
    assert parse_strategy(encode_strategy(strategy)) == strategy


FULL = "{name: full, percent: 100}"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("waves: [", "neither YAML nor JSON"),
        ("[]", "Expected `object`"),
        ("waves: []", "length >= 1"),
        ("colour: red", "unknown field `colour`"),
        (f"waves: [{{name: a}}, {FULL}]", "needs either percent or count"),
        (f"waves: [{{name: a, percent: 1, count: 1}}, {FULL}]", "needs either percent or count"),
        (f"waves: [{FULL}, {FULL}]", "two waves are called 'full'"),
        ("waves: [{name: a, percent: 50}, {name: b, percent: 50}]", "stops at 50 %"),
        ("waves: [{name: a, percent: 50}]", "leaves devices out"),
        ("waves: [{name: a, count: 5}]", "leaves devices out"),
        ("waves: [{name: a, percent: 101}]", "<= 100"),
        (f"waves: [{{name: a, count: 0}}, {FULL}]", ">= 1"),
        ("on_failure: explode", "Invalid enum value 'explode'"),
        ("silent_timeout_seconds: 0", "> 0"),
        ("silent_timeout_seconds: .nan", "silent_timeout_seconds|Expected"),
        ("gates: {failure: {max_failures: -1}}", ">= 0"),
        ("gates: {tokens_per_joule: {min: 1}}", "not evaluated yet: tokens_per_joule"),
        ("a: &x [1]\nb: *x", "YAML aliases"),
        ("x" * 70_000, "70000 bytes"),
        ("[" * 5000, "neither YAML nor JSON"),
        ("[" * 65_000, "nests deeper than 32"),
        ('{"a":' * 10_000, "neither YAML nor JSON"),
        ("waves: [" + "1," * 3000 + "]", "more than 2000 values"),
    ],
)
def test_what_is_wrong_is_named(text: str, wrong: str) -> None:
    with pytest.raises(InvalidStrategyError, match=wrong) as caught:
        parse_strategy(text)
    assert caught.value.advice


def test_a_strategy_at_its_bounds_is_accepted() -> None:
    blank = parse_strategy(" " * 65_536)
    assert blank == Strategy()
    small = parse_strategy(f"waves: [{{name: a, percent: 0.5}}, {FULL}]")
    assert small.waves[0].percent == 0.5


def test_the_defaults_are_those_of_the_documents() -> None:
    assert blank_failure() == (1, None, None)
    strategy = Strategy()
    assert [(wave.percent, wave.soak_seconds) for wave in strategy.waves] == [(10, 10), (100, 0)]
    assert (strategy.silent_timeout_seconds, strategy.max_retries) == (600, 1)
    assert strategy.max_unavailable is None


def blank_failure() -> tuple[int, int | None, float | None]:
    gate = FailureGate()
    return gate.min_executed, gate.max_failures, gate.max_failure_percent
