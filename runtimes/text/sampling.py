"""Choice of a token from logits. Greedy is argmax, with the lowest index among equals."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtimes.base import Sampling
from runtimes.errors import InvalidInputError, ModelFaultError
from runtimes.text.generation import Chosen

Logits = NDArray[np.float32]
Wide = NDArray[np.float64]


class Constraint(Protocol):
    """A condition on the text, token by token."""

    def allows(self, token: int) -> bool:
        """Return True if this token may come next."""

    def mask(self, logits: Logits) -> None:
        """Set the logits of tokens that may not come next to minus infinity."""

    def accept(self, token: int) -> None:
        """Advance by this allowed token."""


class Sampler:
    """Penalties, temperature, top-k, top-p (Holtzman et al., 2020), min-p (Nguyen et al., 2024).

    Applied in this order, reproducible by seed; a ``constraint`` comes last.
    """

    def __init__(self, sampling: Sampling, constraint: Constraint | None = None) -> None:
        self._sampling = sampling
        self._constraint = constraint
        seed = sampling.seed
        self._random = np.random.default_rng(None if seed is None else abs(seed))
        self._counts: dict[int, int] = {}
        self._penalizes = (
            sampling.repeat_penalty != 1
            or sampling.presence_penalty != 0
            or sampling.frequency_penalty != 0
        )

    def choose(self, logits: Logits) -> Chosen:
        """Return the next token from one row of logits; InvalidInputError if none is allowed."""
        token = self.pick(logits)
        if not self._sampling.logprobs:
            return Chosen(token)
        return Chosen(token, log_probability(logits, token))

    def pick(self, logits: Logits) -> int:
        """Return the next token alone."""
        scores = self._penalized(logits) if self._penalizes else logits
        token = self._draw(scores)
        constraint = self._constraint
        if constraint is not None:
            if not constraint.allows(token):
                # Most tokens are allowed, and checking one is cheaper than masking all. A token
                # drawn again among the allowed has the same odds as if masking had come first.
                token = self._draw_allowed(scores.copy(), constraint)
            constraint.accept(token)
        if self._penalizes:
            self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _draw_allowed(self, scores: Logits, constraint: Constraint) -> int:
        constraint.mask(scores)
        if not np.isfinite(scores.max()):
            raise InvalidInputError(
                "no token of the model continues the text within the grammar",
                advice="Check the grammar: it may ask for characters that the model cannot write.",
            )
        return self._draw(scores)

    def _penalized(self, logits: Logits) -> Logits:
        if not self._counts:
            return logits
        scores = logits.copy()
        tokens = np.fromiter(self._counts, np.int64, len(self._counts))
        counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
        seen = scores[tokens]
        repeat = self._sampling.repeat_penalty
        seen = np.where(seen > 0, seen / repeat, seen * repeat)
        seen -= self._sampling.presence_penalty + counts * self._sampling.frequency_penalty
        scores[tokens] = seen
        return scores

    def _draw(self, scores: Logits) -> int:
        sampling = self._sampling
        if sampling.temperature == 0:
            # NaN counts as the maximum, so that looking at the chosen one finds any NaN.
            token = int(np.argmax(scores))
            _check_finite(scores[token])
            return token
        # Before top_k, which would sort NaN out.
        _check_finite(scores.max())
        kept = self._top_k(scores)
        scaled = (scores if kept is None else scores[kept]).astype(np.float64)
        # Subtract before dividing: a tiny temperature would give infinities.
        scaled -= scaled.max()
        with np.errstate(over="ignore"):
            scaled /= sampling.temperature
        weights = np.exp(scaled, out=scaled)
        if sampling.min_p > 0:
            weights[weights < sampling.min_p] = 0
        drawn = self._nucleus(weights) if sampling.top_p < 1 else self._draw_index(weights)
        return int(drawn if kept is None else kept[drawn])

    def _top_k(self, scores: Logits) -> NDArray[np.int64] | None:
        """Return the indices of the ``top_k`` largest, in order; None for all."""
        count = self._sampling.top_k
        if not 0 < count < len(scores):
            return None
        return np.sort(np.argpartition(-scores, count - 1)[:count])

    def _nucleus(self, weights: Wide) -> int:
        """Draw from the smallest set of tokens whose probability reaches top_p."""
        top_p = self._sampling.top_p
        probabilities = weights / weights.sum()
        # All weights below this together are negligible.
        likely = np.flatnonzero(probabilities >= (1 - top_p) / len(probabilities))
        order = likely[np.argsort(-probabilities[likely], kind="stable")]
        cumulative = np.cumsum(probabilities[order])
        kept = int(np.searchsorted(cumulative, top_p * (1 - 1e-12))) + 1
        return int(order[self._draw_index(probabilities[order[:kept]])])

    def _draw_index(self, weights: Wide) -> int:
        """Draw an index with probability proportional to its weight."""
        cumulative = np.cumsum(weights)
        drawn = self._random.random() * cumulative[-1]
        # The last index with any weight, so that rounding cannot choose one without.
        last = int(np.searchsorted(cumulative, cumulative[-1]))
        return min(int(np.searchsorted(cumulative, drawn, side="right")), last)


def _check_finite(highest: float) -> None:
    """Raise ModelFaultError if the highest logit is NaN or infinite."""
    if not np.isfinite(highest):
        raise ModelFaultError(
            f"the model's highest logit is {highest}",
            advice="Deploy another variant: the weights or the activations of this one overflow.",
        )


def log_probability(logits: Logits, token: int) -> float:
    """Return the natural logarithm of a token's softmax probability."""
    highest = logits.max()
    total = np.exp(logits - highest).sum(dtype=np.float64)
    return float(logits[token] - highest - np.log(total))


def negative_log_likelihood(logits: Logits, targets: NDArray[np.int64]) -> float:
    """Return the sum over rows of each target's negative log-likelihood, in nats."""
    total = 0.0
    # Row by row: a large vocabulary in float64 takes megabytes per row.
    for row, target in zip(logits, targets, strict=True):
        wide = row.astype(np.float64)
        wide -= wide.max()
        total += float(np.log(np.exp(wide).sum()) - wide[target])
    return total
