"""Score of a text from a model's predictions."""

from collections.abc import Generator
from contextlib import closing

from runtimes.base import Score, Steps
from runtimes.predictions import Predictions
from runtimes.text.sampling import negative_log_likelihood


def score_of(predictions: Generator[Predictions, None, None]) -> Steps[Score]:
    """Sum predictions to a score; raises the errors of predicting."""
    total, tokens = 0.0, 0
    with closing(predictions):
        for some in predictions:
            total += negative_log_likelihood(some.rows, some.targets)
            tokens += len(some.targets)
            yield
    return Score(total, tokens)
