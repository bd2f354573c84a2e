"""The figures that variants are compared by, and the limits that a policy sets for them.

A new figure is a field of Figures, a ``predicted_`` and a ``measured_`` field of Candidate, and the
same two fields of flotilla.v1.SelectionCandidate.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Figures of a variant, predicted or measured; 0 or None if unknown.

    For tasks other than text generation a token is one inference.
    """

    tokens_per_second: float = 0.0
    memory_bytes: int = 0
    joules_per_token: float | None = None
    ttft_seconds: float | None = None

    def named(self, prefix: str) -> dict[str, Any]:
        """Return the figures as fields of Candidate; ``prefix`` is predicted or measured."""
        return {f"{prefix}_{name}": value for name, value in asdict(self).items()}


FIGURE_NAMES: Final = tuple(spec.name for spec in fields(Figures))
# The fields of Candidate that hold figures, under the names that the wire uses too.
CANDIDATE_FIGURES: Final = tuple(
    f"{prefix}_{name}" for prefix in ("predicted", "measured") for name in FIGURE_NAMES
)


class Limits(Protocol):
    """Limits of a policy; 0 or None if unset."""

    @property
    def min_tokens_per_second(self) -> float: ...
    @property
    def max_ttft_seconds(self) -> float | None: ...
    @property
    def max_joules_per_token(self) -> float | None: ...


def missed_limits(figures: Figures, limits: Limits, rate_unit: str) -> list[str]:
    """Return the limits that these figures miss, in words; unknown figures miss none."""
    misses = []
    speed, least_speed = figures.tokens_per_second, limits.min_tokens_per_second
    if 0 < speed < least_speed:
        misses.append(f"{speed:.1f} {rate_unit}, {least_speed:g} asked")
    ttft, most_ttft = figures.ttft_seconds, limits.max_ttft_seconds
    if most_ttft is not None and ttft and ttft > most_ttft:
        misses.append(f"{ttft:.3g} s to the first token, {most_ttft:g} allowed")
    joules, most_joules = figures.joules_per_token, limits.max_joules_per_token
    if most_joules and joules and joules > most_joules:
        misses.append(f"{joules:.3g} J/token, {most_joules:g} allowed")
    return misses
