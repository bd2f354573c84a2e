"""What a step takes on this machine, as it was measured, and how much one should therefore do.

Texts that share a step share the reading of the weights, but not every kernel makes use of that:
with some formats a batch of two takes longer than two steps of one.
"""

from dataclasses import dataclass
from typing import Final

from runtimes.llama_cpp.limits import BATCH_TOKENS

# While others generate, so much of prompts is read per step: about so long, at least so many.
STALL_SECONDS: Final = 0.1
FEWEST_PROMPT_TOKENS: Final = 16
FIRST_PROMPT_TOKENS: Final = 64
# A width is judged by so many of its steps, and measured again after so many steps of others.
SAMPLES: Final = 3
STALE_STEPS: Final = 256
# Of a new measurement, against what was known.
WEIGHT: Final = 0.25
# All at once is even for everybody, and nothing less is worth a gain below this.
GAIN: Final = 1.1


@dataclass(slots=True)
class _Width:
    """Steps that gave so many texts a token each: the seconds of one, how many, when the last."""

    seconds: float = 0.0
    samples: int = 0
    measured_at: int = 0


class Pace:
    """Learns from every step."""

    def __init__(self) -> None:
        self._prompt_seconds_per_token = 0.0
        self._widths: dict[int, _Width] = {}
        self._steps = 0

    def learn(self, texts: int, tokens: int, seconds: float) -> None:
        """A step processed so many tokens of so many texts."""
        self._steps += 1
        if tokens >= FEWEST_PROMPT_TOKENS:
            before = self._prompt_seconds_per_token or seconds / tokens
            self._prompt_seconds_per_token = (before + seconds / tokens) / 2
        if tokens == texts:
            width = self._widths.setdefault(texts, _Width(seconds))
            width.seconds += (seconds - width.seconds) * max(WEIGHT, 1 / (width.samples + 1))
            width.samples += 1
            width.measured_at = self._steps

    def prompt_share(self) -> int:
        """Tokens of prompts to read in a step that others wait for."""
        if not self._prompt_seconds_per_token:
            return FIRST_PROMPT_TOKENS
        share = int(STALL_SECONDS / self._prompt_seconds_per_token)
        return min(max(share, FEWEST_PROMPT_TOKENS), BATCH_TOKENS)

    def width(self, texts: int) -> int:
        """How many of so many texts should get a token in the next step.

        All, unless fewer at a time, in turn, bring more tokens per second. All, a half, a quarter
        and so on, and one are tried.
        """
        candidates = [texts, *(1 << n for n in reversed(range((texts - 1).bit_length())))]
        for candidate in candidates:
            known = self._widths.get(candidate, _Width())
            if known.samples < SAMPLES or self._steps - known.measured_at >= STALE_STEPS:
                return candidate
        best = max(candidates, key=self._rate)
        return best if self._rate(best) > GAIN * self._rate(texts) else texts

    def _rate(self, width: int) -> float:
        """Tokens per second; of steps too short to measure, whatever makes them few."""
        return width / max(self._widths[width].seconds, 1e-9)
