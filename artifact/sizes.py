"""Sizes in binary units, printed and parsed."""

import re
from typing import Final

_SIZE: Final = re.compile(r"(?P<count>[0-9]{1,15})\s*(?P<unit>[A-Za-z]*)")
_SHIFTS: Final = {"": 0, "b": 0, "kib": 10, "mib": 20, "gib": 30, "tib": 40}


def in_bytes(count: float, decimals: int = 1) -> str:
    """Format bytes in the largest unit that fits: 5.1 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:  # noqa: PLR2004 - the step between binary units
            return f"{count:.0f} B" if unit == "B" else f"{count:.{decimals}f} {unit}"
        count /= 1024
    return f"{count:.{decimals}f} TiB"


def parse_size(text: int | str) -> int:
    """Parse 67108864, "64MiB" or "2 GiB" to bytes; ValueError for anything else."""
    match = _SIZE.fullmatch(str(text).strip())
    shift = _SHIFTS.get(match["unit"].lower()) if match else None
    if match is None or shift is None:
        raise ValueError(f"{text!r} is not a size; write it like 512MiB, 4GiB, or in bytes")
    return int(match["count"]) << shift
