"""YAML files that people write, read strictly: an error names the file, the line and the field."""

from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from artifact.sizes import parse_size
from artifact.yaml_text import YamlTextError, read_yaml
from controlplane.cli.app import RefusedError
from controlplane.cli.exit_codes import ExitCode

MAX_FILE_BYTES = 4 << 20
# Tensors of probation checks may stand in the file.
MAX_FILE_VALUES = 1_000_000

T = TypeVar("T")


class YamlFile:
    """Contents of a file. ``raw`` may be changed before it is converted."""

    def __init__(self, path: Path, example: str) -> None:
        """Read the file; RefusedError if it is not YAML. ``example`` names a sound one."""
        self._path = path
        self._example = example
        text = read_bounded(path).decode(errors="replace")
        try:
            self._text = read_yaml(text, max_nodes=MAX_FILE_VALUES)
        except YamlTextError as error:
            raise _usage(f"{path}, {error}", example) from error
        if self._text.value is None:
            raise _usage(f"{path} is empty", example)
        self.raw: Any = self._text.value

    def convert(self, schema: type[T]) -> T:
        """Convert to a schema; RefusedError names the line and the field."""
        try:
            return msgspec.convert(self.raw, schema)
        except msgspec.ValidationError as error:
            self.refuse(error)

    def refuse(self, error: msgspec.ValidationError) -> NoReturn:
        """Raise RefusedError for an error of msgspec, whose message ends with a JSON path."""
        reason, _, place = str(error).partition(" - at `$")
        place = place.rstrip("`")
        line = self._text.line_of(place)
        field = f"{place.lstrip('.')}: " if place else ""
        quoted = "`str`, got" in reason
        raise _usage(
            f"{self._path}, line {line}: {field}{reason}",
            'Put quotes around versions and names that look like numbers: version: "1.0".'
            if quoted
            else self._example,
        ) from error


def wrong(reason: str, place: str) -> msgspec.ValidationError:
    """Return an error at a place such as ``$.goals.max-size``, in msgspec's form."""
    return msgspec.ValidationError(f"{reason} - at `{place}`")


def size_at(value: int | str, place: str) -> int:
    """Parse a size; the error names the place."""
    try:
        return parse_size(value)
    except ValueError as error:
        raise wrong(str(error), place) from error


def read_bounded(path: Path) -> bytes:
    """Read a file that people write; RefusedError if it is unreadable or too large."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _usage(
            f"cannot read {path}: {error.strerror}",
            "Check the path; paths in a file are relative to it.",
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise _usage(
            f"{path} has more than {MAX_FILE_BYTES} bytes",
            "Such a file holds names and checks; files of models stay in their folder.",
        )
    return data


def _usage(message: str, advice: str) -> RefusedError:
    return RefusedError(message, advice=advice, exit_code=ExitCode.USAGE)
