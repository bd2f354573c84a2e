"""The one reader of YAML, with bounds, for files of people and texts of strangers.

Nesting, aliases and the number of nodes are checked on the stream of parser events, before any
object is built: PyYAML's time is quadratic in the nesting, and an alias can expand a short text to
any size. Repeated keys are refused, since YAML would silently keep the last one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml

MAX_DEPTH: Final = 32
# Enough for a file of some thousand lines.
MAX_NODES: Final = 100_000

# YAML 1.1 has integers to the base of 60 (1:30), whose time is quadratic in their length.
MAX_NUMBER_CHARACTERS: Final = 64

_NUMBER: Final = re.compile(r"[-+0-9_.:]*")
_STEP: Final = re.compile(r"\.([^.\[]+)|\[(\d+)\]")


class YamlTextError(ValueError):
    """The text is not YAML, or exceeds a bound; ``line`` counts from 1, 0 if unknown."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {message}" if line else message)
        self.line = line


@dataclass(frozen=True, slots=True)
class YamlText:
    """A document: its value (None if the text is blank), and the nodes that know their lines."""

    value: Any
    _root: yaml.Node | None

    def line_of(self, place: str) -> int:
        """Return the line of a JSON path such as ``.waves[0].name``, or of its nearest parent."""
        node = self._root
        if node is None:
            return 1
        for key, position in _STEP.findall(place):
            inner = _child(node, key, position)
            if inner is None:
                break
            node = inner
        return int(node.start_mark.line) + 1


def read_yaml(text: str, *, max_nodes: int = MAX_NODES, max_depth: int = MAX_DEPTH) -> YamlText:
    """Read one YAML document; YamlTextError for any other text. Blocks: see ``max_nodes``."""
    try:
        _check_events(text, max_nodes, max_depth)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return YamlText(None, None)
        _refuse_repeats(root)
        return YamlText(yaml.safe_load(text), root)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 0
        raise YamlTextError(error.problem or "malformed", line) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        if isinstance(error, YamlTextError):
            raise
        raise YamlTextError(str(error)) from error


def _check_events(text: str, max_nodes: int, max_depth: int) -> None:
    depth = nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark is not None else 0
        if isinstance(event, yaml.AliasEvent):
            raise YamlTextError("YAML aliases are not supported; write the part out", line)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > max_depth:
                raise YamlTextError(f"the text nests deeper than {max_depth} levels", line)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and event.style is None:
            _check_number(event.value, line)
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
            if nodes > max_nodes:
                raise YamlTextError(f"the text has more than {max_nodes} values", line)


def _check_number(text: str, line: int) -> None:
    if len(text) > MAX_NUMBER_CHARACTERS and _NUMBER.fullmatch(text):
        raise YamlTextError(
            f"a number has {len(text)} characters; the maximum is {MAX_NUMBER_CHARACTERS}", line
        )


def _refuse_repeats(root: yaml.Node) -> None:
    for node in _nodes(root):
        if not isinstance(node, yaml.MappingNode):
            continue
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise YamlTextError(
                    f"the key {name!r} occurs twice; keep one", key.start_mark.line + 1
                )
            seen.add(name)


def _nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    yield node
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _nodes(item)
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from _nodes(value)


def _child(node: yaml.Node, key: str, position: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode) and key:
        return next((value for name, value in node.value if name.value == key), None)
    if isinstance(node, yaml.SequenceNode) and position and int(position) < len(node.value):
        item: yaml.Node = node.value[int(position)]
        return item
    return None
