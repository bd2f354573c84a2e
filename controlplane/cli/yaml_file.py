"""A YAML file that people write, read strictly: an error names the file, the line and the field.

Repeated keys are refused; unknown ones are where the schema forbids them.
"""

import re
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec
import yaml

from controlplane.cli.app import RefusedError

MAX_FILE_BYTES = 4 << 20

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_SIZE = re.compile(r"(?P<count>\d{1,13})\s*(?P<unit>[A-Za-z]*)")
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")

T = TypeVar("T")


class YamlFile:
    """What a file says. ``raw`` may be changed before it is converted."""

    def __init__(self, path: Path, example: str) -> None:
        """RefusedError for what is no YAML; ``example`` is where its reader finds a sound one."""
        self._path = path
        self._example = example
        text = read_bounded(path).decode(errors="replace")
        try:
            tree = yaml.compose(text, Loader=yaml.SafeLoader)
            _refuse_repeats(path, tree)
            self.raw: Any = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise RefusedError(f"{path} is not YAML: {error}", advice=example) from error
        if tree is None:
            raise RefusedError(f"{path} is empty", advice=example)
        self._tree: yaml.Node = tree

    def convert(self, schema: type[T]) -> T:
        """The file as its schema says; RefusedError names what is wrong."""
        try:
            return msgspec.convert(self.raw, schema)
        except msgspec.ValidationError as error:
            self.refuse(error)

    def refuse(self, error: msgspec.ValidationError) -> NoReturn:
        """Msgspec ends its message with a JSON path, which leads to a line."""
        reason, _, place = str(error).partition(" - at `$")
        place = place.rstrip("`")
        line = _line(self._tree, place)
        field = f"{place.lstrip('.')}: " if place else ""
        quoted = "`str`, got" in reason
        raise RefusedError(
            f"{self._path}, line {line}: {field}{reason}",
            advice='Put quotes around versions and names that look like numbers: version: "1.0".'
            if quoted
            else self._example,
        ) from error


def wrong(reason: str, place: str) -> msgspec.ValidationError:
    """An error of one's own at a place such as ``$.goals.max-size``, as msgspec says it."""
    return msgspec.ValidationError(f"{reason} - at `{place}`")


def size_at(value: int | str, place: str) -> int:
    """As parse_size; the error names the place."""
    try:
        return parse_size(value)
    except msgspec.ValidationError as error:
        raise wrong(str(error), place) from error


def parse_size(value: int | str) -> int:
    """Bytes of 67108864, "64MiB" or "2 GiB"; msgspec.ValidationError for anything else."""
    match = _SIZE.fullmatch(str(value))
    unit = _UNITS.get(match["unit"].upper()) if match else None
    if match is None or unit is None:
        raise msgspec.ValidationError(
            f"{value!r} is no size; write bytes, or a number with KiB, MiB or GiB"
        )
    return int(match["count"]) * unit


def read_bounded(path: Path) -> bytes:
    """The bytes of a file that people write; RefusedError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RefusedError(
            f"cannot read {path}: {error.strerror}",
            advice="Check the path; those in a file are relative to it.",
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise RefusedError(
            f"{path} has more than {MAX_FILE_BYTES} bytes",
            advice="Such a file holds names and checks; files of models stay in their folder.",
        )
    return data


def _refuse_repeats(path: Path, node: yaml.Node | None) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeats(path, item)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        name = str(key.value)
        if name in seen:
            raise RefusedError(
                f"{path}, line {key.start_mark.line + 1}: {name!r} stands there twice",
                advice="Keep one of them.",
            )
        seen.add(name)
        _refuse_repeats(path, value)


def _line(node: yaml.Node, place: str) -> int:
    for key, position in _STEP.findall(place):
        if isinstance(node, yaml.MappingNode) and key:
            inner = next((value for name, value in node.value if name.value == key), None)
        elif isinstance(node, yaml.SequenceNode) and position and int(position) < len(node.value):
            inner = node.value[int(position)]
        else:
            inner = None
        if inner is None:
            break
        node = inner
    return int(node.start_mark.line) + 1
