"""Bounds on the values that a chat template creates.

A deadline cannot interrupt one operation in C, such as ``2 ** (2 ** 30)``, and a limit on the
output does not bound values that are never written. Every operation whose result can be much larger
than its operands is therefore checked before it runs, and the bytes of all created values are
counted.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final, NamedTuple

MAX_TEXT_CHARACTERS: Final = 1 << 23
MAX_ITEMS: Final = 100_000
MAX_DEPTH: Final = 100
MAX_WIDTH: Final = 1000
MAX_BITS: Final = 4096
# All values of one rendering together, although most are freed at once.
MAX_CREATED_BYTES: Final = 192 << 20

_SIZED: Final = (str, bytes, list, tuple, dict, set, frozenset)
_PLAIN_TEXT_METHODS: Final = {
    *("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha"),
    *("isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper"),
    *(
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "rfind",
        "rindex",
        "rpartition",
    ),
    *("rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title"),
    "upper",
}
_PADDING_METHODS: Final = frozenset({"center", "ljust", "rjust", "zfill"})
_CONTAINER_METHODS: Final = frozenset({"items", "keys", "values", "get", "index", "count", "copy"})


class TemplateLimitError(Exception):
    """A template exceeds a limit."""


class _Rendering(threading.local):
    """Bytes that the present rendering of this thread may still create."""

    remaining = MAX_CREATED_BYTES


_rendering = _Rendering()


def begin() -> None:
    """Begin a rendering in this thread."""
    _rendering.remaining = MAX_CREATED_BYTES


def charge(size: int) -> None:
    """Count created bytes; raise TemplateLimitError beyond the limit."""
    _rendering.remaining -= size
    if _rendering.remaining < 0:
        raise TemplateLimitError(f"it creates more than {MAX_CREATED_BYTES >> 20} MiB of values")


class Weight(NamedTuple):
    """Size of a value with everything in it, counted as often as it would be printed."""

    items: int
    characters: int
    depth: int


def weigh(value: Any) -> Weight:
    """Measure a value; raise TemplateLimitError if it is too large to be printed or compared.

    Lists that contain the same list several times would otherwise double with every level.
    """
    items = characters = deepest = 0
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        items += 1
        deepest = max(deepest, depth)
        if isinstance(item, str):
            characters += len(item)
        elif isinstance(item, dict):
            _check_count(items + 2 * len(item))
            waiting.extend((part, depth + 1) for pair in item.items() for part in pair)
        elif isinstance(item, list | tuple | set | frozenset):
            _check_count(items + len(item))
            waiting.extend((part, depth + 1) for part in item)
        if deepest > MAX_DEPTH or items > MAX_ITEMS or characters > MAX_TEXT_CHARACTERS:
            raise TemplateLimitError("it creates a value that is too large")
    return Weight(items, characters, deepest)


def _check_count(count: int) -> None:
    if count > MAX_ITEMS:
        raise TemplateLimitError(f"it creates a value of more than {MAX_ITEMS:,} items")


def created(value: Any) -> Any:
    """Count a new value; return it."""
    if isinstance(value, _SIZED):
        charge(sys.getsizeof(value))
        if not isinstance(value, str | bytes):
            weigh(value)
    return value


def check_characters(count: int) -> None:
    """Raise TemplateLimitError if a text is about to have too many characters."""
    if count > MAX_TEXT_CHARACTERS:
        raise TemplateLimitError(
            f"it creates a text of more than {MAX_TEXT_CHARACTERS:,} characters"
        )


def check_width(width: Any) -> None:
    """Raise TemplateLimitError for a width, precision or count that only wastes memory."""
    if not isinstance(width, int) or abs(width) > MAX_WIDTH:
        raise TemplateLimitError(f"it uses the width {str(width)[:20]}; the maximum is {MAX_WIDTH}")


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Raise TemplateLimitError before a binary operation with an unreasonably large result."""
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "**" and numbers:
        _check_bits(left.bit_length() * max(right, 0))
    elif operator == "*" and numbers:
        _check_bits(left.bit_length() + right.bit_length())
    elif operator == "*":
        for sequence, count in ((left, right), (right, left)):
            if isinstance(sequence, _SIZED) and isinstance(count, int):
                weight = weigh(sequence)
                check_characters(weight.characters * count)
                _check_count(weight.items * count if not isinstance(sequence, str) else 0)
    elif operator == "%" and isinstance(left, str):
        check_percent(left, right)


def _check_bits(count: int) -> None:
    if count > MAX_BITS:
        raise TemplateLimitError(f"it computes a number of more than {MAX_BITS} bits")


def check_percent(text: str, values: Any) -> None:
    """Check a format of the ``%`` operator: widths, and how often values are repeated."""
    conversions = 0
    position = text.find("%")
    while position >= 0:
        conversions += 1
        position = _end_of_conversion(text, position + 1)
        position = text.find("%", position + 1)
    check_characters(len(text) + conversions * (MAX_WIDTH + weigh(values).characters))


def _end_of_conversion(text: str, position: int) -> int:
    """Return the position of the conversion's letter, as CPython's parser finds it."""
    if text[position : position + 1] == "(":
        depth = 1
        while depth and position + 1 < len(text):
            position += 1
            depth += (text[position] == "(") - (text[position] == ")")
        position += 1
    digits = ""
    while position < len(text) and text[position] in "#0- +.*123456789hlL":
        if text[position] == "*":
            raise TemplateLimitError("it takes a width from a value")
        digits = digits + text[position] if text[position].isdigit() else ""
        if len(digits) > len(str(MAX_WIDTH)) or int(digits or 0) > MAX_WIDTH:
            raise TemplateLimitError(f"it uses a width of more than {MAX_WIDTH}")
        position += 1
    return position


def bounded_list(values: Iterable[Any]) -> list[Any]:
    """Return the items of an iterable; raise TemplateLimitError if there are too many."""
    items = list(islice(values, MAX_ITEMS + 1))
    _check_count(len(items))
    return items


def join(values: Iterable[Any], separator: str) -> str:
    """Join the texts of values."""
    texts = [str(value) for value in bounded_list(values)]
    check_characters(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def replace(text: str, old: str, new: str, count: int = -1) -> str:
    """Replace parts of a text."""
    found = text.count(old)
    found = found if count < 0 else min(found, count)
    check_characters(len(text) + found * max(len(new) - len(old), 0))
    return text.replace(old, new, count)


def call_method(method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a method of a text or container; raise TemplateLimitError for other methods."""
    owner: Any = getattr(method, "__self__", None)
    name = method.__name__
    if isinstance(owner, str):
        if name == "join":
            return join(args[0], str(owner))
        if name == "replace":
            return replace(str(owner), *args, **kwargs)
        if name in _PADDING_METHODS:
            check_width(args[0])
        elif name not in _PLAIN_TEXT_METHODS:
            raise TemplateLimitError(f"it calls the method {name!a} of a text")
        # Each part of a split text is an object.
        if name in {"split", "rsplit", "splitlines"}:
            return bounded_list(method(*args, **kwargs))
    elif not isinstance(owner, list | tuple | dict) or name not in _CONTAINER_METHODS:
        raise TemplateLimitError(f"it calls {name!a} of {type(owner).__name__}")
    return method(*args, **kwargs)
