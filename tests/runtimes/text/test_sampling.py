import math
from collections import Counter

import numpy as np
import pytest

from runtimes.base import Sampling
from runtimes.errors import InvalidInputError, ModelFaultError
from runtimes.text.sampling import Sampler, negative_log_likelihood

PROBABILITIES = np.array([0.5, 0.3, 0.15, 0.05])
LOGITS = np.log(PROBABILITIES).astype(np.float32)


def draw(sampling: Sampling, times: int = 4000) -> Counter[int]:
    sampler = Sampler(sampling)
    return Counter(sampler.pick(LOGITS) for _ in range(times))


def test_greedy_takes_the_first_of_the_largest() -> None:
    sampler = Sampler(Sampling(temperature=0))
    assert sampler.pick(np.array([1, 3, 3, 2], dtype=np.float32)) == 1


def test_tokens_come_as_often_as_they_are_likely() -> None:
    drawn = draw(Sampling(temperature=1, seed=1))
    for token, probability in enumerate(PROBABILITIES):
        assert drawn[token] / 4000 == pytest.approx(probability, abs=0.03)


def test_a_low_temperature_sharpens() -> None:
    assert draw(Sampling(temperature=0.25, seed=1))[0] > 3400


@pytest.mark.parametrize(
    ("top_p", "tokens"), [(0.5, {0}), (0.51, {0, 1}), (0.8, {0, 1}), (1, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, tokens: set[int]) -> None:
    assert set(draw(Sampling(temperature=1, top_p=top_p, seed=1))) == tokens


def test_top_k_keeps_the_most_likely() -> None:
    assert set(draw(Sampling(temperature=1, top_k=2, seed=1))) == {0, 1}


def test_min_p_is_a_share_of_the_most_likely() -> None:
    assert set(draw(Sampling(temperature=1, min_p=0.29, seed=1))) == {0, 1, 2}


def test_what_is_kept_keeps_its_proportions() -> None:
    drawn = draw(Sampling(temperature=1, top_k=3, top_p=0.9, min_p=0.3, seed=1))
    assert drawn[0] / drawn[1] == pytest.approx(0.5 / 0.3, rel=0.1)


@pytest.mark.parametrize(
    "penalty",
    [
        {"repeat_penalty": 2.0},
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
    ],
)
def test_penalties_make_what_was_said_less_likely(penalty: dict[str, float]) -> None:
    logits = np.array([3.0, 2.5, -5.0], dtype=np.float32)
    sampler = Sampler(Sampling(**penalty))  # type: ignore[arg-type]
    assert [sampler.pick(logits) for _ in range(2)] == [0, 1]
    assert logits.tolist() == [3.0, 2.5, -5.0]


def test_a_frequency_penalty_grows_and_a_presence_penalty_does_not() -> None:
    logits = np.array([3.0, 0.0], dtype=np.float32)

    def said(**penalty: float) -> list[int]:
        sampler = Sampler(Sampling(**penalty))  # type: ignore[arg-type]
        return [sampler.pick(logits) for _ in range(4)]

    assert said(presence_penalty=2) == [0, 0, 0, 0]
    assert said(frequency_penalty=2) == [0, 0, 1, 0]


def test_log_probabilities_are_those_of_the_model() -> None:
    sampler = Sampler(Sampling(temperature=0.1, presence_penalty=2, logprobs=True, seed=1))
    for _ in range(5):
        token, logprob = sampler.choose(LOGITS)
        assert logprob == pytest.approx(math.log(PROBABILITIES[token]), abs=1e-5)
    assert Sampler(Sampling()).choose(LOGITS).logprob is None


class Only:
    """A constraint that allows some tokens."""

    def __init__(self, *tokens: int) -> None:
        self._tokens = tokens
        self.accepted: list[int] = []

    def allows(self, token: int) -> bool:
        return token in self._tokens

    def mask(self, logits: np.ndarray) -> None:
        logits[[token for token in range(len(logits)) if token not in self._tokens]] = -np.inf

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def test_a_constraint_leaves_what_it_allows_in_proportion() -> None:
    only = Only(1, 3)
    sampler = Sampler(Sampling(temperature=1, seed=1), only)
    drawn = Counter(sampler.pick(LOGITS) for _ in range(4000))
    assert set(drawn) == {1, 3}
    assert drawn[3] / 4000 == pytest.approx(0.05 / 0.35, abs=0.02)
    assert Counter(only.accepted) == drawn


def test_greedy_under_a_constraint_is_the_best_of_what_it_allows() -> None:
    assert Sampler(Sampling(), Only(2, 3)).pick(LOGITS) == 2


def test_a_constraint_that_allows_nothing_is_the_callers() -> None:
    with pytest.raises(InvalidInputError, match="no token of the model"):
        Sampler(Sampling(), Only()).pick(LOGITS)


def test_a_seed_repeats_and_no_seed_does_not() -> None:
    def series(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1, seed=seed))
        return [sampler.pick(LOGITS) for _ in range(64)]

    assert series(7) == series(7)
    assert series(7) != series(8)
    assert series(None) != series(None)


def test_the_lowest_temperature_takes_the_most_likely() -> None:
    logits = np.array([1, 5, 3], np.float32)
    assert Sampler(Sampling(temperature=5e-324, seed=1)).pick(logits) == 1


def test_extreme_logits_do_not_overflow() -> None:
    logits = np.array([1e30, -1e30, 0], dtype=np.float32)
    assert Sampler(Sampling(temperature=0.01, seed=0)).pick(logits) == 0


def test_likelihood_is_that_of_softmax() -> None:
    rows = np.stack([LOGITS, LOGITS + 100])
    nats = negative_log_likelihood(rows, np.array([0, 3]))
    assert nats == pytest.approx(-np.log(0.5) - np.log(0.05), rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=2)]
)
def test_logits_that_are_not_finite_are_a_fault_of_the_model(
    bad: float, sampling: Sampling
) -> None:
    logits = np.array([1.0, bad, 2.0, 0.5], dtype=np.float32)
    with pytest.raises(ModelFaultError, match="logit"):
        Sampler(sampling).choose(logits)
    with pytest.raises(ModelFaultError, match="logit"):
        Sampler(sampling).choose(np.full(4, -np.inf, np.float32))
