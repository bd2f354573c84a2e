"""Parts of a JSON schema that no finite value fits, since they must contain themselves.

Computed as a least fixed point: the set of terminating schemas grows until it is stable (like the
productive symbols of a grammar; Hopcroft and Ullman, 1979, section 4.4).
"""

from collections.abc import Mapping
from typing import Any


def endless(targets: Mapping[str, Any]) -> str | None:
    """Return the pointer of the first reference that no finite value fits; None without one."""
    ending: set[str] = set()
    waiting = list(targets)
    while True:
        # Targets are found after their references, so reversed order mostly needs one pass.
        found = [pointer for pointer in reversed(waiting) if _ends(targets[pointer], ending)]
        if not found:
            return waiting[0] if waiting else None
        ending.update(found)
        waiting = [pointer for pointer in waiting if pointer not in ending]


def _ends(schema: Any, ending: set[str]) -> bool:
    """Return True if a finite value fits, given finite values for all of ``ending``."""
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
    """Return the schemas of required contents of this type; for type None, by the keywords."""
    needed: list[Any] = []
    if kind in (None, "object"):
        needed += [schema["properties"][name] for name in schema.get("required", [])]
    if kind in (None, "array"):
        needed += schema.get("prefixItems") or []
        needed += [schema.get("items")] * bool(schema.get("minItems"))
    return needed
