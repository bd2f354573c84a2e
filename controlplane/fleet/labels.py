"""Rules for device labels."""

import re
from collections.abc import Mapping

from controlplane.errors import InvalidInputError

MAX_LABELS = 64
# Kubernetes' limits for label names and values.
KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
WORD_ADVICE = "Use letters, digits, dots, dashes and underscores, at most 63 of them."


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise InvalidInputError for too many labels or a malformed one."""
    if len(labels) > MAX_LABELS:
        raise InvalidInputError(
            f"{len(labels)} labels are more than {MAX_LABELS}",
            advice="Keep the labels that select devices, and drop the rest.",
        )
    for key, value in labels.items():
        if not KEY.fullmatch(key):
            raise InvalidInputError(f"{key[:80]!r} is not a label name", advice=WORD_ADVICE)
        if not VALUE.fullmatch(value):
            raise InvalidInputError(
                f"{value[:80]!r} is not a value for the label {key!r}", advice=WORD_ADVICE
            )
