"""Types of the agent's options: sizes, names, labels."""

from typing import Any

import click
import msgspec

from agent.config import LabelValue, parse_size
from agent.errors import AgentError
from artifact.manifest import Label


class Size(click.ParamType[int]):
    """Bytes: 512MiB, 4GiB, or a number."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_size(value)
        except AgentError as error:
            self.fail(f"{error}. {error.advice}", param, ctx)


class Checked(click.ParamType[str]):
    """Text that follows one of the types of agent.config."""

    def __init__(self, name: str, kind: Any) -> None:
        self.name = name
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(msgspec.convert(value, self._kind))
        except msgspec.ValidationError:
            self.fail(f"{value!r} is not a valid {self.name}", param, ctx)


class LabelPair(click.ParamType[tuple[str, str]]):
    """KEY=VALUE."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        key, equals, text = str(value).partition("=")
        try:
            if not equals:
                self.fail(f"{value!r} is not key=value", param, ctx)
            return msgspec.convert(key, Label), msgspec.convert(text, LabelValue)
        except msgspec.ValidationError:
            self.fail(
                f"{value!r} is not a valid label: use up to 63 letters, digits, '.', '_' and '-'",
                param,
                ctx,
            )
