"""Measured step times of this machine, and the step sizes derived from them.

Texts in one step share the reading of the weights, but not every kernel profits: in some formats a
batch of two takes longer than two steps of one.
"""

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from runtimes.llama_cpp.limits import BATCH_TOKENS

# Prompt share of a step while others generate: about this time, at least this many tokens.
STALL_SECONDS: Final = 0.1
FEWEST_PROMPT_TOKENS: Final = 16
FIRST_PROMPT_TOKENS: Final = 64
# A width is judged by its last steps, and measured again after this many of others.
SAMPLES: Final = 3
STALE_STEPS: Final = 256
# All at once is fair, so turns must gain at least this much.
GAIN: Final = 1.1


@dataclass(slots=True)
class _Width:
    """Steps that generated for a number of texts: seconds of the last ones, and their time."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    measured_at: int = 0


class Pace:
    """Choose prefill share and batch width from the steps measured so far."""

    def __init__(self) -> None:
        self._prompt_seconds_per_token = 0.0
        # Keyed by adapter, which lengthens steps, and number of texts.
        self._widths: dict[tuple[str, int], _Width] = {}
        self._steps = 0

    def read(self, tokens: int, seconds: float) -> None:
        """Record a step that processed so many tokens, including prompt tokens."""
        self._steps += 1
        if tokens >= FEWEST_PROMPT_TOKENS:
            before = self._prompt_seconds_per_token or seconds / tokens
            self._prompt_seconds_per_token = (before + seconds / tokens) / 2

    def generated(self, adapter: str, texts: int, seconds: float) -> None:
        """Record a step that generated a token for each of ``texts`` texts of an adapter."""
        self._steps += 1
        width = self._widths.setdefault((adapter, texts), _Width())
        width.seconds.append(seconds)
        width.measured_at = self._steps

    def prompt_share(self) -> int:
        """Return how many prompt tokens to read in a step while others generate."""
        if not self._prompt_seconds_per_token:
            return FIRST_PROMPT_TOKENS
        share = int(STALL_SECONDS / self._prompt_seconds_per_token)
        return min(max(share, FEWEST_PROMPT_TOKENS), BATCH_TOKENS)

    def width(self, adapter: str, texts: int) -> int:
        """Return how many of ``texts`` texts should get a token in the next step.

        All of them, unless fewer at a time, in turn, give more tokens per second; all and the
        powers of two below are tried.
        """
        candidates = [texts, *(1 << n for n in reversed(range((texts - 1).bit_length())))]
        rates = {}
        for candidate in candidates:
            known = self._widths.setdefault((adapter, candidate), _Width())
            if self._steps - known.measured_at >= STALE_STEPS:
                known.seconds.clear()
            if len(known.seconds) < SAMPLES:
                return candidate
            # Ignore steps that are too short to measure.
            rates[candidate] = candidate / max(statistics.median(known.seconds), 1e-9)
        best = max(candidates, key=rates.__getitem__)
        return best if rates[best] > GAIN * rates[texts] else texts
