"""Control tokens: parsed where the chat template writes them, plain text where a message has them.

Before a conversation is rendered, the first character of every control token's text in it is
replaced by a Unicode noncharacter that it does not contain. Texts keep their length, and texts
without control tokens are not changed at all. In the rendered prompt, the remaining control tokens
are the template's own; the noncharacters then become the original characters again.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from runtimes.errors import InvalidInputError

# U+FDD0 to U+FDEF and the last two code points of each plane are never assigned to characters.
_NONCHARACTERS: Final = (
    *map(chr, range(0xFDD0, 0xFDF0)),
    *(chr((plane << 16) + last) for plane in range(1, 17) for last in (0xFFFE, 0xFFFF)),
)


class ChatPrompt(str):
    """A rendered conversation. As a text, it is what a reader sees.

    ``segments`` separates the template's control tokens from all other text.
    """

    __slots__ = ("marked", "marks")

    marks: Mapping[str, str]
    marked: str

    def __new__(cls, marked: str, marks: Mapping[str, str]) -> Self:
        prompt = super().__new__(cls, _unmark(marked, marks))
        prompt.marks = marks
        prompt.marked = marked
        return prompt


@dataclass(frozen=True, slots=True)
class Marked:
    """A value whose control tokens are marked; ``marks`` maps stand-ins to characters."""

    value: Any
    marks: Mapping[str, str]


class ControlTokens:
    """The texts of a vocabulary's control tokens, with their numbers."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self._tokens = {text: token for text, token in tokens.items() if text}
        if not self._tokens:
            return
        # The longest of several that begin alike, as tokenizers do.
        longest_first = sorted(self._tokens, key=len, reverse=True)
        alternatives = "|".join(map(re.escape, longest_first))
        first = "".join(sorted({re.escape(text[0]) for text in self._tokens}))
        # Every start, also of overlapping ones. The set of first characters comes first because
        # searching for it is fast; the lookbehind then goes back to try the alternatives.
        self._start = re.compile(f"[{first}](?<=(?={alternatives}).)", re.DOTALL)
        self._whole = re.compile(alternatives)

    def mark(self, value: Any) -> Marked:
        """Mark the control tokens in all texts of a nested value."""
        if not self._tokens:
            return Marked(value, {})
        texts = list(_texts(value))
        starts = {match[0] for text in texts for match in self._start.finditer(text)}
        if not starts:
            return Marked(value, {})
        present = set().union(*texts)
        free = (each for each in _NONCHARACTERS if each not in present)
        stand_ins = dict(zip(sorted(starts), free, strict=False))
        if len(stand_ins) < len(starts):
            raise InvalidInputError(
                "the conversation contains too many different Unicode noncharacters",
                advice="Remove characters such as U+FDD0.",
            )

        def mark_text(text: str) -> str:
            return self._start.sub(lambda match: stand_ins[match[0]], text)

        marks = {stand_in: character for character, stand_in in stand_ins.items()}
        return Marked(_mapped(value, mark_text), marks)

    def tokenize(self, prompt: ChatPrompt, encode: Callable[[str], list[int]]) -> list[int]:
        """Return a prompt's tokens; ``encode`` encodes text without control tokens."""
        tokens: list[int] = []
        position = 0
        for match in self._whole.finditer(prompt.marked):
            if match.start() > position:
                tokens += encode(_unmark(prompt.marked[position : match.start()], prompt.marks))
            tokens.append(self._tokens[match[0]])
            position = match.end()
        if position < len(prompt.marked):
            tokens += encode(_unmark(prompt.marked[position:], prompt.marks))
        return tokens


NO_CONTROL_TOKENS: Final = ControlTokens({})


def _unmark(text: str, marks: Mapping[str, str]) -> str:
    for stand_in, character in marks.items():
        # A template may have escaped it: ``tojson(ensure_ascii=true)``.
        escaped = json_escape(stand_in)
        text = text.replace(stand_in, character).replace(escaped, character)
    return text


def json_escape(character: str) -> str:
    """Return a character as JSON escapes it in ASCII."""
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[n]:02x}{units[n + 1]:02x}" for n in range(0, len(units), 2))


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(key, change): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value
