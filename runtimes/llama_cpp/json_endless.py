"""Which parts of a JSON schema no finite value fits: those that have to contain themselves.

The least fixed point: what is known to end grows until nothing is added (as the productive symbols
of a grammar are found; Hopcroft and Ullman, 1979, section 4.4).
"""

from collections.abc import Mapping
from typing import Any


def endless(targets: Mapping[str, Any]) -> str | None:
    """The first of a schema's references, by pointer, whose target no finite value fits."""
    ending: set[str] = set()
    waiting = list(targets)
    while True:
        # What is referred to was found after what refers to it, so that one turn is mostly enough.
        found = [pointer for pointer in reversed(waiting) if _ends(targets[pointer], ending)]
        if not found:
            return waiting[0] if waiting else None
        ending.update(found)
        waiting = [pointer for pointer in waiting if pointer not in ending]


def _ends(schema: Any, ending: set[str]) -> bool:
    """Whether a finite value fits, if one fits each of the ``ending``."""
    if not isinstance(schema, dict):
        return True
    if "$ref" in schema:
        return schema["$ref"] in ending
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return any(_ends(part, ending) for part in schema[union])
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return any(all(_ends(part, ending) for part in _needed(kind, schema)) for kind in kinds)


def _needed(kind: str | None, schema: Mapping[str, Any]) -> list[Any]:
    """Schemas of what every value of this type has inside; of None, which the keywords tell."""
    needed: list[Any] = []
    if kind in (None, "object"):
        needed += [schema["properties"][name] for name in schema.get("required", [])]
    if kind in (None, "array"):
        needed += schema.get("prefixItems") or []
        needed += [schema.get("items")] * bool(schema.get("minItems"))
    return needed
