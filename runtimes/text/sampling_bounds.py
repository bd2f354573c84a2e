"""Bounds of sampling parameters."""

from typing import Final

from runtimes.base import Sampling
from runtimes.errors import InvalidInputError

MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARACTERS: Final = 256
MAX_TEMPERATURE: Final = 100
MAX_TOP_K: Final = 1 << 20
MAX_REPEAT_PENALTY: Final = 10.0
# OpenAI's bounds.
MAX_PENALTY: Final = 2.0
MAX_GRAMMAR_CHARACTERS: Final = 1 << 16


def check_sampling(sampling: Sampling) -> None:
    """Raise InvalidInputError for sampling parameters outside their ranges."""
    _check_numbers(sampling)
    _check(
        "the number of stop strings",
        len(sampling.stop),
        len(sampling.stop) <= MAX_STOP_STRINGS,
        f"at most {MAX_STOP_STRINGS}",
    )
    for stop in sampling.stop:
        fits = 1 <= len(stop) <= MAX_STOP_CHARACTERS
        _check("the length of a stop string", len(stop), fits, f"1 to {MAX_STOP_CHARACTERS}")
    for what, text in (("grammar", sampling.grammar), ("schema", sampling.json_schema)):
        fits = len(text) <= MAX_GRAMMAR_CHARACTERS
        _check(f"the length of the {what}", len(text), fits, f"at most {MAX_GRAMMAR_CHARACTERS}")
    if sampling.grammar and sampling.json_schema:
        raise InvalidInputError(
            "the request has both a grammar and a JSON schema", advice="Send one of the two."
        )


def refuse_grammar(sampling: Sampling) -> None:
    """Raise InvalidInputError if an engine without grammars is asked to use one."""
    if sampling.grammar or sampling.json_schema:
        raise InvalidInputError(
            "this model's runtime does not support grammars and JSON schemas",
            advice="Deploy a GGUF variant, or remove response_format and grammar.",
        )


def refuse_adapter(name: str, known: tuple[str, ...]) -> None:
    """Raise InvalidInputError unless a name is empty or that of a loaded adapter."""
    if name and name not in known:
        raise InvalidInputError(
            f"this model has no adapter {name[:64]!a}",
            advice=f"Use one of: {', '.join(known)}." if known else "It has no adapters.",
        )


def _check_numbers(sampling: Sampling) -> None:
    _check("max_tokens", sampling.max_tokens, sampling.max_tokens >= 1, "at least 1")
    warm = 0 <= sampling.temperature <= MAX_TEMPERATURE
    _check("temperature", sampling.temperature, warm, f"0 to {MAX_TEMPERATURE}")
    _check("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "above 0 and at most 1")
    _check("top_k", sampling.top_k, 0 <= sampling.top_k <= MAX_TOP_K, f"0 to {MAX_TOP_K}")
    _check("min_p", sampling.min_p, 0 <= sampling.min_p <= 1, "0 to 1")
    repeat = sampling.repeat_penalty
    fits = 0 < repeat <= MAX_REPEAT_PENALTY
    _check("repeat_penalty", repeat, fits, f"above 0 and at most {MAX_REPEAT_PENALTY:g}")
    for what in ("presence_penalty", "frequency_penalty"):
        value: float = getattr(sampling, what)
        fits = -MAX_PENALTY <= value <= MAX_PENALTY
        _check(what, value, fits, f"{-MAX_PENALTY:g} to {MAX_PENALTY:g}")


def _check(what: str, value: float, holds: bool, bounds: str) -> None:
    if not holds:
        raise InvalidInputError(f"{what} is {value}", advice=f"It must be {bounds}.")
