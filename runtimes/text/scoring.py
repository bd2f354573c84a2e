"""The score of a text, from what a model predicts of it piece by piece."""

from collections.abc import Generator
from contextlib import closing

from runtimes.base import Score, Steps
from runtimes.predictions import Predictions
from runtimes.text.sampling import negative_log_likelihood


def score_of(predictions: Generator[Predictions, None, None]) -> Steps[Score]:
    """Sums up; what raises while predicting is raised here."""
    total, tokens = 0.0, 0
    with closing(predictions):
        for some in predictions:
            total += negative_log_likelihood(some.rows, some.targets)
            tokens += len(some.targets)
            yield
    return Score(total, tokens)
