"""Output of commands: tables for people, one JSON document for programs."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

MAX_CELL = 200
# Longest reason that the server stores.
MAX_FIELD = 4096
LEAST_COLUMNS = 20


def print_json(value: Any) -> None:
    """Print one JSON document on one line; terminal control characters are escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # Such characters occur only within JSON strings, where an escape has the same meaning.
    click.echo("".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text))


def note(text: str) -> None:
    """Print progress and hints to stderr, so that stdout stays a document."""
    click.echo(clean(text, limit=2000), err=True)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """Print aligned columns, by rich on a terminal; without rows print ``empty``."""
    if not rows:
        click.echo(empty)
        return
    cells = [[clean(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(header, cells)
        return
    widths = [max(len(row[column]) for row in [header, *cells]) for column in range(len(header))]
    for row in [header, *cells]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def _print_rich(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def print_fields(fields: Mapping[str, str]) -> None:
    """Print a name and value per line, wrapped on a terminal; skip empty values."""
    print_pairs(fields.items())


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Print like ``print_fields``, with names that may repeat."""
    shown = [(clean(name), clean(value, MAX_FIELD)) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for name, value in shown:
        click.echo(hanging_indent(f"{name.ljust(width)}  ", value, columns))


def hanging_indent(title: str, text: str, columns: int | None) -> str:
    """Wrap the text beside its title at ``columns``, without breaking words and paths."""
    if columns is None:
        return title + text
    indent = " " * len(title)
    lines = textwrap.wrap(
        text,
        max(columns - len(title), LEAST_COLUMNS),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return title + f"\n{indent}".join(lines)


def clean(text: str, limit: int = MAX_CELL) -> str:
    """Escape control characters of untrusted text for a terminal, and cut it."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def message_to_json(message: Message) -> dict[str, Any]:
    """Convert to JSON: field names of the protos, every field present, numbers as numbers.

    Enums lose their prefix (ROLLOUT_STATE_RUNNING -> running), timestamps are ISO 8601 or null,
    bytes hex, unset optionals and messages null.
    """
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name["value"]
        return {str(key): _value(value[key], entry) for key in sorted(value)}
    if field.is_repeated:
        return [_value(item, field) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _value(value, field)


def _value(value: Any, field: Any) -> Any:
    if isinstance(value, Timestamp):
        return moment(value).isoformat().replace("+00:00", "Z")
    if isinstance(value, Message):
        return message_to_json(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return enum_name(field.enum_type.name, known.name) if known else str(value)
    return value.hex() if isinstance(value, bytes) else value


def enum_name(enum: str, value: str) -> str:
    """Convert RolloutState, ROLLOUT_STATE_ROLLED_BACK to rolled_back; unspecified to ""."""
    prefix = "".join(f"_{char}" if char.isupper() else char.upper() for char in enum)[1:]
    short = value.removeprefix(f"{prefix}_").lower()
    return "" if short == "unspecified" else short


def moment(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)


def ago(timestamp: Timestamp, now: datetime) -> str:
    """Format the time since, or until, a timestamp in its largest unit; "never" if unset."""
    if not timestamp.seconds:
        return "never"
    seconds = (now - moment(timestamp)).total_seconds()
    span = duration(abs(seconds))
    return f"{span} ago" if seconds >= 0 else f"in {span}"


def duration(seconds: float) -> str:
    """Format seconds in the largest unit that fits: 90 -> 1m, 3600 -> 1h."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
