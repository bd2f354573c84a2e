"""Tokenization with enough stack for llama.cpp's regular expressions.

Pre-tokenizers without a hand-written splitter (gpt-4o, tekken, deepseek-*, llama4 and others) run
by std::regex, which recurses for every character of a match. Measured with 38 of the 91 names that
llama.cpp knows, on x86_64: at most 321 bytes of stack per character, so that a word of 32,000
letters overflowed a stack of 8 MiB. Long texts are therefore tokenized on a thread with a large
stack, whose pages are touched only as far as the recursion goes.
"""

import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

from runtimes.errors import InvalidInputError

T = TypeVar("T")

# Three times the measured maximum, for other compilers and architectures.
_STACK_BYTES_PER_CHARACTER: Final = 1 << 10
_STACK_BYTES: Final = 208 << 20
# Longest stretch of text that one match may cover.
MAX_STRETCH: Final = 200_000
# Stretches up to this need less than 1.4 MiB, which any stack here has, so they need no thread.
SHORT_STRETCH: Final = 4096

# None of llama.cpp's recursive expressions matches a line feed followed by anything but whitespace.
_BREAK: Final = re.compile(r"(?<=\n)(?=\w)")
# threading.stack_size is a setting of the whole process.
_stack_size_lock = threading.Lock()

assert MAX_STRETCH * _STACK_BYTES_PER_CHARACTER < _STACK_BYTES  # noqa: S101 - constants agree


def longest_stretch(text: str) -> int:
    """Return an upper bound of the characters in one match of a pre-tokenizer's expression."""
    return max(map(len, _BREAK.split(text)))


def with_stack_for(text: str, tokenize: Callable[[], T]) -> T:
    """Run ``tokenize`` on a stack that suffices for this text; raise InvalidInputError."""
    if len(text) <= SHORT_STRETCH or (stretch := longest_stretch(text)) <= SHORT_STRETCH:
        return tokenize()
    if stretch > MAX_STRETCH:
        raise InvalidInputError(
            f"a line of the text has {stretch:,} characters; the maximum is {MAX_STRETCH:,}",
            advice="Break the line, or send less text.",
        )
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(tokenize())
        except Exception as error:  # noqa: BLE001 - raised by the caller's thread
            result.set_exception(error)

    with _stack_size_lock:
        before = threading.stack_size(_STACK_BYTES)
        try:
            threading.Thread(target=run, name="tokenize").start()
        finally:
            threading.stack_size(before)
    return result.result()
