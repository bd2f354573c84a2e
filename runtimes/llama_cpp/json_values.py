"""JSON values as GBNF: the rules of every schema's grammar, and their bounds."""

import json
from typing import Any, Final

from runtimes.errors import InvalidInputError

MAX_ITEMS: Final = 1000

RULES: Final = {
    "ws": '" "?',
    "char": r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" hex hex hex hex)',
    "hex": "[0-9a-fA-F]",
    "string": r'"\"" char* "\""',
    "digits": "[0-9]{0,15}",
    "whole": '"0" | [1-9] digits',
    "integer": '"-"? whole',
    "number": '"-"? whole ("." [0-9] digits)? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "member": 'string ":" ws value',
    "object": '"{" ws (member ("," ws member)*)? ws "}"',
    "array": '"[" ws (value ("," ws value)*)? ws "]"',
    "date": '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])',
    "time": (
        '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
        '("Z" | [-+] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])'
    ),
    "uuid": 'hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}',
}
_KINDS: Final = {
    dict: "object",
    list: "array",
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
}
_FORMATS: Final = {
    "date": r'"\"" date "\""',
    "time": r'"\"" time "\""',
    "date-time": r'"\"" date "T" time "\""',
    "uuid": r'"\"" uuid "\""',
}


def string_of(schema: dict[str, Any]) -> str:
    """Return an expression for the strings of a schema."""
    form = schema.get("format")
    if form in _FORMATS:
        if {"minLength", "maxLength"} & schema.keys():
            raise refusal(f"bounds the length of a {form}")
        return _FORMATS[form]
    least, most = bounds(schema, "minLength", "maxLength", MAX_ITEMS)
    if least == 0 and most is None:
        return "string"
    return rf'"\"" char{{{least},{"" if most is None else most}}} "\""'


def number_of(kind: str, schema: dict[str, Any]) -> str:
    """Return an expression for the numbers or integers of a schema."""
    above, least = schema.get("exclusiveMinimum"), schema.get("minimum")
    if above is None and least is None:
        return kind
    if kind == "integer" and (above == 0 or least == 1):
        return "[1-9] digits"
    if least != 0 or above is not None:
        raise refusal(f"bounds a number by {json.dumps(least if above is None else above)[:32]}")
    return RULES[kind].removeprefix('"-"? ')


def typed(value: Any, schema: dict[str, Any]) -> Any:
    """Return the value if it has the schema's type."""
    kinds = schema.get("type")
    kind = _KINDS[type(value)]
    whole = kind == "number" and (isinstance(value, int) or value.is_integer())
    fits = {kind, "integer"} if whole else {kind}
    allowed = kinds if isinstance(kinds, list) else [kinds]
    if kinds is not None and not fits.intersection(allowed):
        raise refusal(f"lists {json.dumps(value)[:64]}, which is not of type {kinds}")
    return value


def bounds(schema: dict[str, Any], low: str, high: str, limit: int) -> tuple[int, int | None]:
    """Return minimum and maximum of a length, each at most ``limit``; None: unbounded."""
    least, most = schema.get(low, 0), schema.get(high)
    for value in (least, 0 if most is None else most):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
            raise refusal(
                f"has {low} or {high} of {json.dumps(value)[:32]}; 0 to {limit} is allowed"
            )
    if most is not None and most < least:
        raise refusal(f"has {low} {least} above {high} {most}")
    return least, most


def choices(schema: dict[str, Any], keyword: str) -> list[Any]:
    """Return the alternatives of a keyword, at least one."""
    values = schema[keyword]
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_ITEMS:
        raise refusal(f"has no alternatives in {keyword}, or more than {MAX_ITEMS}")
    return values


def literal(value: Any) -> str:
    """Return an expression for exactly this value; ValueError if it is not JSON."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise refusal("has an unpaired surrogate in a string") from error
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\x7f", "\\x7F")
    return f'"{escaped}"'


def refusal(what: str) -> InvalidInputError:
    """Return the error for a schema that cannot be enforced."""
    return InvalidInputError(
        f"the JSON schema {what}",
        advice="See docs/gateway.md for the supported keywords, or send a grammar.",
    )
