"""Contract of predictions: they give the same figures as the score of a text."""

import numpy as np
import pytest

from runtimes.base import Engine, Sampling
from runtimes.errors import InvalidInputError
from runtimes.predictions import PredictsText
from runtimes.text.sampling import negative_log_likelihood
from runtimes.text.steps import whole

TEXT = "The captain asked for the map, and the crew looked at the sea. " * 8


def predictions(engine: Engine) -> PredictsText:
    assert isinstance(engine, PredictsText)
    return engine


def test_predictions_add_up_to_the_score(text_engine: Engine) -> None:
    score = whole(text_engine.score(TEXT))
    total, tokens, done = 0.0, 0, [0.0]
    for some in predictions(text_engine).predictions(TEXT):
        rows = np.asarray(some.rows, dtype=np.float32)
        assert len(rows) == len(some.targets) <= 64
        total += negative_log_likelihood(rows, np.asarray(some.targets))
        tokens += len(some.targets)
        done.append(some.done)
    assert tokens == score.tokens
    assert total == pytest.approx(score.negative_log_likelihood, rel=1e-5)
    assert done == sorted(done)
    assert done[-1] == 1


def test_predictions_are_the_same_again_and_nothing_is_left_of_those_left_off(
    text_engine: Engine,
) -> None:
    first = next(predictions(text_engine).predictions(TEXT))
    rows, targets = np.array(first.rows), np.array(first.targets)
    again = next(predictions(text_engine).predictions(TEXT))
    assert (np.array(again.targets) == targets).all()
    assert np.array(again.rows) == pytest.approx(rows, abs=1e-4)


def test_a_score_is_found_in_steps_of_a_few_tokens_and_may_be_given_up(
    text_engine: Engine,
) -> None:
    score = whole(text_engine.score(TEXT))
    assert sum(1 for _ in text_engine.score(TEXT)) >= score.tokens / 64
    begun = text_engine.score(TEXT)
    next(begun)
    begun.close()
    assert whole(text_engine.score(TEXT)) == score
    assert [piece.text for piece in text_engine.generate("Hello", Sampling(max_tokens=2))]


def test_a_text_without_a_token_to_predict_is_refused(text_engine: Engine) -> None:
    with pytest.raises(InvalidInputError):
        list(predictions(text_engine).predictions(""))
