"""GBNF grammars for llama.cpp, checked before its parser, which trusts its input.

A count like ``{5,2}`` made the parser allocate memory until it was killed, brackets nested 200,000
deep crashed it, and a text of 60,000 characters repeated 1000 times took 500 MB. These, and all
grammars above the limits, are refused here.
"""

import ctypes
import re
import time
import weakref
from collections.abc import Iterator
from typing import Any, Final

import llama_cpp
import numpy as np

from runtimes.base import Sampling
from runtimes.errors import InvalidInputError
from runtimes.llama_cpp.json_schema import to_grammar
from runtimes.llama_cpp.log import listening
from runtimes.llama_cpp.native import Model
from runtimes.text.sampling import Logits

MAX_GRAMMAR_CHARACTERS: Final = 1 << 18
MAX_RULES: Final = 8192
MAX_NESTING: Final = 64
MAX_REPETITIONS: Final = 1000
MAX_ALL_REPETITIONS: Final = 20_000
# llama.cpp expands a repeated literal or class, at 8 bytes per character.
MAX_REPEATED_CHARACTERS: Final = 1 << 20
# An ambiguous grammar can double its open alternatives with every character, so a token that takes
# this long would soon exhaust the memory. Within one token there is no interruption: with a
# vocabulary of long runs of a character at which such a grammar doubles, only the supervisor's time
# limit ends it.
MAX_STEP_SECONDS: Final = 1.0

_TOKEN: Final = re.compile(
    r"""
    (?P<skip>\#[^\n]*|\s+)
    |(?P<written>"(?:[^"\\\n]|\\.)*"|\[(?:[^\]\\\n]|\\.)*\]|[|*+?.])
    |(?P<rule>[A-Za-z0-9-]+(?=\s*::=))
    |(?P<define>::=)
    |(?P<name>[A-Za-z0-9-]+)
    |(?P<open>\()|(?P<close>\))
    |\{\s*(?P<least>[0-9]{1,5})\s*(?:(?P<comma>,)\s*(?P<most>[0-9]{1,5})?\s*)?\}
    """,
    re.VERBOSE,
)
_CANDIDATE: Final = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def check_grammar(text: str) -> None:
    """Raise InvalidInputError, with the reason, for grammars that would crash llama.cpp."""
    if len(text) > MAX_GRAMMAR_CHARACTERS:
        raise _refusal(f"has {len(text)} characters; the maximum is {MAX_GRAMMAR_CHARACTERS}")
    nesting = repetitions = repeated = written = 0
    rules: list[str] = []
    for match in _tokens(text):
        if match["rule"]:
            rules.append(match["rule"])
        elif match["least"]:
            repetitions += _repetitions(match)
            # A repetition of a repetition multiplies the counts.
            written *= _repetitions(match)
            repeated += written
        elif not match["skip"]:
            written = len(match["written"] or "r")
        nesting += bool(match["open"]) - bool(match["close"])
        if nesting > MAX_NESTING or nesting < 0:
            raise _refusal(f"nests brackets deeper than {MAX_NESTING}, or has an unmatched bracket")
    too_many = repetitions > MAX_ALL_REPETITIONS or repeated > MAX_REPEATED_CHARACTERS
    if too_many or len(rules) > MAX_RULES:
        raise _refusal("has too many rules or repetitions")
    if "root" not in rules:
        raise _refusal("has no rule called root")


def _tokens(text: str) -> Iterator[re.Match[str]]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _refusal(
                f"has an error at character {position}: {text[position : position + 20]!a}"
            )
        position = match.end()
        yield match


def _repetitions(match: re.Match[str]) -> int:
    least = int(match["least"])
    most = int(match["most"]) if match["most"] else least
    if not least <= most <= MAX_REPETITIONS:
        raise _refusal(
            f"has the repetition {match[0]}; counts must ascend and be at most {MAX_REPETITIONS}"
        )
    return most


class Grammar:
    """State of a text in a grammar; a Constraint (runtimes.text.sampling)."""

    def __init__(self, model: Model, text: str) -> None:
        log_lines: list[str] = []
        with listening(log_lines.append):
            sampler = llama_cpp.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
        if not sampler:
            reason = f": {log_lines[0][:200]}" if log_lines else ""
            raise _refusal(f"is refused by llama.cpp{reason}")
        self._sampler = sampler
        weakref.finalize(self, llama_cpp.llama_sampler_free, sampler)
        self._all = np.zeros(model.vocab_size, _CANDIDATE)
        self._all["id"] = np.arange(model.vocab_size)
        self._one = np.zeros(1, _CANDIDATE)

    def allows(self, token: int) -> bool:
        """Return True if this token may come next."""
        self._one["id"] = token
        self._apply(self._one)
        return bool(np.isfinite(self._one["logit"][0]))

    def mask(self, logits: Logits) -> None:
        """Set the logits of tokens that may not come next to minus infinity."""
        self._apply(self._all)
        np.copyto(logits, -np.inf, where=np.isneginf(self._all["logit"]))

    def accept(self, token: int) -> None:
        """Advance by this allowed token."""
        started = time.perf_counter()
        llama_cpp.llama_sampler_accept(self._sampler, token)
        _refuse_explosion(started)

    def _apply(self, candidates: Any) -> None:
        candidates["logit"] = 0
        array = llama_cpp.llama_token_data_array(
            data=candidates.ctypes.data_as(llama_cpp.llama_token_data_p),
            size=len(candidates),
            selected=-1,
            sorted=False,
        )
        started = time.perf_counter()
        llama_cpp.llama_sampler_apply(self._sampler, ctypes.byref(array))
        _refuse_explosion(started)


def constraint_of(model: Model, sampling: Sampling) -> Grammar | None:
    """Return the constraint of a request, None without one; raises InvalidInputError."""
    text = to_grammar(sampling.json_schema) if sampling.json_schema else sampling.grammar
    if not text:
        return None
    check_grammar(text)
    return Grammar(model, text)


def _refuse_explosion(started: float) -> None:
    if time.perf_counter() - started > MAX_STEP_SECONDS:
        raise _refusal("is too ambiguous to follow")


def _refusal(what: str) -> InvalidInputError:
    return InvalidInputError(
        f"the grammar {what}", advice="See llama.cpp's grammars/README.md for how GBNF is written."
    )
