"""Batch widths and prefill shares chosen from measured steps."""

from collections.abc import Callable

import pytest

from runtimes.llama_cpp.pace import (
    FEWEST_PROMPT_TOKENS,
    FIRST_PROMPT_TOKENS,
    SAMPLES,
    STALE_STEPS,
    STALL_SECONDS,
    Pace,
)


def after(pace: Pace, texts: int, cost: Callable[[int], float], steps: int) -> list[int]:
    """Return the widths of ``steps`` steps, each of which takes ``cost(width)`` seconds."""
    widths = []
    for _ in range(steps):
        width = pace.width("", texts)
        pace.generated("", width, cost(width))
        widths.append(width)
    return widths


@pytest.mark.parametrize(
    ("texts", "seconds", "best"),
    [
        # All at once; one at a time; two at a time.
        (4, {1: 1.0, 2: 1.2, 4: 1.5}, 4),
        (4, {1: 1.0, 2: 3.0, 4: 4.9}, 1),
        (4, {1: 1.0, 2: 1.1, 4: 3.0}, 2),
        # The gain over all at once is too small.
        (4, {1: 1.0, 2: 2.1, 4: 4.2}, 4),
        (5, {1: 1.0, 2: 1.1, 4: 1.2, 5: 4.0}, 4),
        (2, {1: 1.0, 2: 2.5}, 1),
        (1, {1: 1.0}, 1),
        # Shorter than the clock's resolution.
        (4, {1: 0.0, 2: 0.0, 4: 0.0}, 4),
    ],
)
def test_after_some_of_each_the_fastest_is_taken(
    texts: int, seconds: dict[int, float], best: int
) -> None:
    widths = after(Pace(), texts, seconds.__getitem__, 100)
    tried = SAMPLES * len(seconds)
    assert sorted(widths[:tried]) == sorted([*seconds] * SAMPLES)
    assert set(widths[tried:]) == {best}


def test_what_has_become_faster_is_found_though_it_was_not_taken() -> None:
    pace = Pace()
    assert after(pace, 4, {1: 1.0, 2: 3.0, 4: 6.0}.__getitem__, 100)[-1] == 1
    # For example after the text has grown, or after other programs have ended.
    widths = after(pace, 4, {1: 1.0, 2: 1.2, 4: 1.5}.__getitem__, 12 * STALE_STEPS)
    assert widths[-1] == 4
    assert widths.count(4) > STALE_STEPS


def test_measuring_again_is_a_small_share() -> None:
    widths = after(Pace(), 4, {1: 1.0, 2: 1.2, 4: 1.5}.__getitem__, 10 * STALE_STEPS)
    assert widths.count(4) > 0.97 * len(widths)


def test_one_step_that_was_held_up_changes_nothing() -> None:
    pace = Pace()
    seconds = {1: 1.0, 2: 3.0, 4: 6.0}
    after(pace, 4, seconds.__getitem__, STALE_STEPS // 2)
    pace.generated("", 1, 50.0)
    assert set(after(pace, 4, seconds.__getitem__, STALE_STEPS // 3)) == {1}


def test_adapters_are_judged_by_their_own_steps() -> None:
    pace = Pace()
    for _ in range(SAMPLES):
        pace.generated("", 1, 1.0)
        pace.generated("slow", 1, 3.0)
        for adapter in ("", "slow"):
            pace.generated(adapter, 2, 2.5)
    assert (pace.width("", 2), pace.width("slow", 2)) == (1, 2)


def test_steps_that_read_prompts_say_how_much_of_them_to_read() -> None:
    pace = Pace()
    assert pace.prompt_share() == FIRST_PROMPT_TOKENS
    pace.read(200, 0.5)
    assert pace.prompt_share() == STALL_SECONDS / 0.0025
    # Too few steps to judge a width.
    pace.read(FEWEST_PROMPT_TOKENS - 1, 10.0)
    assert pace.prompt_share() == STALL_SECONDS / 0.0025
