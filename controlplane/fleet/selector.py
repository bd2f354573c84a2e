"""Label selectors choose devices.

    site=lab,tier!=canary,gpu,!retired,rack in (a1, a2),os notin (trixie)

Every term must hold. As in Kubernetes, ``!=`` and ``notin`` also hold for a device that lacks the
label. An empty selector matches every device.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from controlplane.errors import InvalidSelectorError
from controlplane.fleet.labels import KEY, VALUE

MAX_LENGTH = 1024
MAX_TERMS = 32
MAX_VALUES = 64

_ADVICE = "Write terms such as site=lab, tier!=canary, gpu, !retired, rack in (a1,a2), and commas."
_TERM = re.compile(
    rf"""\s*(?:
        (?P<absent>!)?\s*(?P<key>{KEY.pattern})\s*$
      | (?P<compared>{KEY.pattern})\s*(?P<operator>==|!=|=)\s*(?P<value>{VALUE.pattern})\s*$
      | (?P<listed>{KEY.pattern})\s+(?P<membership>in|notin)\s*\((?P<values>[^()]*)\)\s*$
    )""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Term:
    """One condition; ``values`` None asks whether the label exists."""

    key: str
    values: frozenset[str] | None
    negated: bool

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        found = value is not None and (self.values is None or value in self.values)
        # `!=` and `notin` hold for a missing label: found is false, and negated true.
        return found is not self.negated


@dataclass(frozen=True, slots=True)
class Selector:
    """Conjunction of terms; without terms it matches every device."""

    terms: tuple[Term, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(term.matches(labels) for term in self.terms)


def parse_selector(text: str) -> Selector:
    """Parse a selector; raise InvalidSelectorError if it is malformed."""
    if len(text) > MAX_LENGTH:
        raise InvalidSelectorError(
            f"the selector has {len(text)} characters, more than {MAX_LENGTH}",
            advice="Label the devices that you mean with one label, and select that.",
        )
    if not text.strip():
        return Selector()
    parts = _split(text)
    if len(parts) > MAX_TERMS:
        raise InvalidSelectorError(
            f"the selector has {len(parts)} terms, more than {MAX_TERMS}",
            advice="Label the devices that you mean with one label, and select that.",
        )
    return Selector(tuple(_term(part) for part in parts))


def _split(text: str) -> list[str]:
    """Split at the commas outside parentheses, which do not nest."""
    return re.split(r",(?![^()]*\))", text)


def _term(text: str) -> Term:
    match = _TERM.match(text)
    if match is None:
        raise InvalidSelectorError(f"{text.strip()!r} is not a selector term", advice=_ADVICE)
    if match["key"]:
        return Term(match["key"], None, negated=bool(match["absent"]))
    if match["compared"]:
        return Term(
            match["compared"], frozenset((match["value"],)), negated=match["operator"] == "!="
        )
    values = [value.strip() for value in match["values"].split(",")]
    for value in values:
        if not value or not VALUE.fullmatch(value):
            raise InvalidSelectorError(f"{value!r} is not a value in {text!r}", advice=_ADVICE)
    if len(values) > MAX_VALUES:
        raise InvalidSelectorError(
            f"{len(values)} values in one term are more than {MAX_VALUES}",
            advice="Give those devices one label, and select that.",
        )
    return Term(match["listed"], frozenset(values), negated=match["membership"] == "notin")
