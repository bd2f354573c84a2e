"""Sizes in binary units."""


def in_bytes(count: float, decimals: int = 1) -> str:
    """Format bytes in the largest unit that fits: 5.1 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:  # noqa: PLR2004 - the step between binary units
            return f"{count:.0f} B" if unit == "B" else f"{count:.{decimals}f} {unit}"
        count /= 1024
    return f"{count:.{decimals}f} TiB"
