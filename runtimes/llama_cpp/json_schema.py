"""JSON Schema as a GBNF grammar, so that the model can write only values of the schema.

Keywords that the grammar cannot express are refused by name, never ignored: a text that fits the
grammar fits the schema. Two exceptions: with ``oneOf``, values that fit several schemas pass, and
with ``additionalProperties``, a property may occur twice. Objects have their properties in the
schema's order, and others only with ``additionalProperties``; between tokens one blank is allowed.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from runtimes.errors import InvalidInputError
from runtimes.llama_cpp.json_endless import endless
from runtimes.llama_cpp.json_values import (
    MAX_ITEMS,
    RULES,
    bounds,
    choices,
    literal,
    number_of,
    refusal,
    string_of,
    typed,
)

MAX_DEPTH: Final = 32
MAX_SCHEMAS: Final = 1000

# Keywords that restrict values of each type; others, except annotations, are refused.
_OF_TYPE: Final = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "format"},
    "integer": {"minimum", "exclusiveMinimum"},
    "number": {"minimum"},
    "boolean": set[str](),
    "null": set[str](),
}
_GENERAL: Final = {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"}
# Keywords that define a whole schema, and those allowed beside them.
_WHOLE: Final = {
    "$ref": set[str](),
    "const": {"type"},
    "enum": {"type"},
    "anyOf": set[str](),
    "oneOf": set[str](),
    "allOf": set[str](),
}
_NOTES: Final = {
    *("title", "description", "default", "examples", "$schema", "$id", "$comment"),
    *("deprecated", "readOnly", "writeOnly", "$defs", "definitions"),
}


def to_grammar(text: str) -> str:
    """Return the grammar of a schema's JSON text; raises InvalidInputError."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"the JSON schema is not valid JSON: {str(error)[:200]}", advice="Send a JSON object."
        ) from error
    try:
        return _Converter(schema).grammar()
    except (TypeError, AttributeError, ValueError, RecursionError) as error:
        # A list in the place of a name, an infinite number, and the like.
        raise refusal("is malformed") from error


class _Converter:
    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._rules: dict[str, str] = {}
        self._refs: dict[str, str] = {}
        self._targets: dict[str, Any] = {}
        self._schemas = 0

    def grammar(self) -> str:
        root = self._visit(self._schema, 0)
        if pointer := endless(self._targets):
            raise refusal(f"has {pointer[:100]!a} contain itself without end")
        rules = {"root": root, **self._rules, **RULES}
        return "".join(f"{name} ::= {rule}\n" for name, rule in rules.items())

    def _visit(self, schema: Any, depth: int) -> str:
        """Return an expression for the values of a schema."""
        self._schemas += 1
        if depth > MAX_DEPTH or self._schemas > MAX_SCHEMAS:
            raise refusal(f"is nested deeper than {MAX_DEPTH} or has more than {MAX_SCHEMAS} parts")
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, dict):
            raise refusal(f"has {json.dumps(schema)[:100]} in place of a schema")
        self._check_keywords(schema)
        if "$ref" in schema:
            return self._refer(schema["$ref"], depth)
        return self._either(self._choices(schema, depth))

    def _choices(self, schema: dict[str, Any], depth: int) -> list[str]:
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else choices(schema, "enum")
            return [literal(typed(value, schema)) for value in values]
        for union in ("anyOf", "oneOf", "allOf"):
            if union in schema:
                parts = choices(schema, union)
                if union == "allOf" and len(parts) > 1:
                    raise refusal("has several schemas in allOf")
                return [self._visit(part, depth + 1) for part in parts]
        kinds = schema.get("type") or _guess(schema)
        if kinds is None:
            return ["value"]
        kinds = kinds if isinstance(kinds, list) and kinds else [kinds]
        return [self._of_type(kind, schema, depth) for kind in kinds]

    def _refer(self, pointer: Any, depth: int) -> str:
        if pointer not in self._refs:
            target = self._schema
            for step in _steps(pointer):
                if not isinstance(target, dict) or step not in target:
                    raise refusal(f"refers to {pointer[:100]!a}, which is not in it")
                target = target[step]
            self._targets[pointer] = target
            # Name the rule before visiting its target, which may refer to itself.
            name = self._refs[pointer] = f"ref{len(self._refs)}"
            self._rules[name] = self._visit(target, depth + 1)
            if self._rules[name].split()[0] == name:
                raise refusal(f"defines {pointer[:100]!a} by itself")
        return self._refs[pointer]

    def _check_keywords(self, schema: dict[str, Any]) -> None:
        known = _GENERAL | _NOTES | set[str]().union(*_OF_TYPE.values())
        if unknown := sorted(set(schema) - known):
            raise refusal(f"uses {unknown[0][:64]!a}, which cannot be converted to a grammar")
        for whole, beside in _WHOLE.items():
            more = sorted(set(schema) - _NOTES - beside - {whole})
            if whole in schema and more:
                raise refusal(f"has {more[0]!a} beside {whole!a}")

    def _of_type(self, kind: Any, schema: dict[str, Any], depth: int) -> str:
        match kind:
            case "object" if _OF_TYPE["object"] & schema.keys():
                return self._object(schema, depth)
            case "array" if _OF_TYPE["array"] & schema.keys():
                return self._array(schema, depth)
            case "string":
                return string_of(schema)
            case "integer" | "number":
                return number_of(kind, schema)
            case "object" | "array" | "boolean" | "null":
                return str(kind)
        raise refusal(f"has the type {json.dumps(kind)[:64]}")

    def _object(self, schema: dict[str, Any], depth: int) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise refusal("has properties that are not an object, or required that is not a list")
        if missing := [name for name in required if name not in properties]:
            raise refusal(f"requires {str(missing[0])[:64]!a}, which is not among its properties")
        members = [
            (f'{literal(name)} ":" ws {self._named(self._visit(part, depth + 1))}', name)
            for name, part in properties.items()
        ]
        first, later = self._others(schema, depth)
        # From last to first: the rest of the object after a member, and without one before.
        for member, name in reversed(members):
            afterwards = later
            later = self._named(f'"," ws {member} {afterwards}'.rstrip())
            begun = self._named(f"{member} {afterwards}".rstrip())
            if name in required:
                first = begun
            else:
                first = self._named(f"{begun} | {first}" if first else f"{begun}?")
                later = self._named(f"{later} | {afterwards}" if afterwards else f"{later}?")
        return f'"{{" ws {first} ws "}}"'

    def _others(self, schema: dict[str, Any], depth: int) -> tuple[str, str]:
        """Return expressions for unnamed properties: first in the object, and after others."""
        more = schema.get("additionalProperties", "properties" not in schema)
        if more is False:
            return "", ""
        member = self._named(f'string ":" ws {self._named(self._visit(more, depth + 1))}')
        later = self._named(f'("," ws {member})*')
        return self._named(f"({member} {later})?"), later

    def _array(self, schema: dict[str, Any], depth: int) -> str:
        heads = [self._visit(part, depth + 1) for part in schema.get("prefixItems") or []]
        least, most = bounds(schema, "minItems", "maxItems", MAX_ITEMS)
        rest = schema.get("items", not heads)
        if heads:
            if rest is not False or (least, most) not in {(0, None), (len(heads), len(heads))}:
                raise refusal('has prefixItems without "items": false')
            inside = ' "," ws '.join(self._named(head) for head in heads)
            return f'"[" ws {inside} ws "]"'
        item = self._named(self._visit(rest, depth + 1))
        if most == 0:
            return '"[" ws "]"'
        more = "*" if most is None and least <= 1 else f"{{{max(least - 1, 0)},{_less(most)}}}"
        inside = f'{item} ("," ws {item}){more}'
        return f'"[" ws {inside} ws "]"' if least else f'"[" ws ({inside})? ws "]"'

    def _either(self, choices: Sequence[str]) -> str:
        return choices[0] if len(choices) == 1 else self._named(" | ".join(choices))

    def _named(self, expression: str) -> str:
        """Return the name of a rule for an expression, which can stand anywhere."""
        if expression in RULES or expression in self._rules or not expression:
            return expression
        name = f"r{len(self._rules)}"
        self._rules[name] = expression
        return name


def _less(most: int | None) -> str:
    return "" if most is None else str(most - 1)


def _guess(schema: dict[str, Any]) -> str | None:
    """Return the type that a schema's other keywords imply."""
    return next((kind for kind, words in _OF_TYPE.items() if words & schema.keys()), None)


def _steps(pointer: Any) -> list[str]:
    if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
        raise refusal(f"refers to {json.dumps(pointer)[:100]}, outside itself")
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
