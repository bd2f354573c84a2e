"""Parameter types of the command line: durations, labels and releases."""

import re
from typing import Any

import click

from artifact.errors import ArtifactError
from artifact.manifest import split_reference
from controlplane.errors import InvalidInputError
from controlplane.fleet import check_labels

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhd])")

# Ten years. Longer spans leave the range of dates.
MAX_DURATION_SECONDS = 3650 * 86400


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic in new clicks only
    """A number and a unit: 90s, 15m, 1h, 7d. The value is in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(str(value))
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is not a duration; write 90s, 15m, 1h or 7d.", param, ctx)
        seconds = float(match[1]) * _UNITS[match[2]]
        if seconds > MAX_DURATION_SECONDS:
            self.fail(f"{value!r} is longer than 3650d.", param, ctx)
        return seconds


class Label(click.ParamType):  # type: ignore[type-arg]  # generic in new clicks only
    """KEY=VALUE. The value is the pair."""

    name = "label"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not equals:
            self.fail(f"{value!r} is not a label; write KEY=VALUE.", param, ctx)
        try:
            check_labels({key: text})
        except InvalidInputError as error:
            self.fail(f"{error}. {error.advice}", param, ctx)
        return key, text


class Reference(click.ParamType):  # type: ignore[type-arg]  # generic in new clicks only
    """PUBLISHER/NAME@VERSION of a release; an empty value means any release."""

    name = "reference"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            return ""
        try:
            split_reference(str(value))
        except ArtifactError as error:
            self.fail(f"{error}. {error.advice}", param, ctx)
        return str(value)


DURATION = Duration()
LABEL = Label()
REFERENCE = Reference()

limit_option = click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=50,
    show_default=True,
    help="Show at most so many, newest first.",
)
