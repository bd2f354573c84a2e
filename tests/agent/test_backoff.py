"""Backoff doubles up to its bound, draws from zero, and respects the server's minimum."""

from agent.backoff import Backoff


def test_the_bound_doubles_to_its_limit_and_starts_over_after_a_success() -> None:
    backoff = Backoff(1, 5, uniform=lambda _, high: high)
    assert [backoff.next_seconds() for _ in range(4)] == [1, 2, 4, 5]
    backoff.reset()
    assert backoff.next_seconds() == 1


def test_the_draw_is_from_zero_to_the_bound() -> None:
    bounds: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        bounds.append((low, high))
        return low

    Backoff(2, 8, uniform=draw).next_seconds()
    assert bounds == [(0, 2)]


def test_what_the_server_asks_for_is_the_least() -> None:
    assert Backoff(1, 5, uniform=lambda low, _: low).next_seconds(30) == 30
