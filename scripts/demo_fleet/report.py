"""The demo's closing tables."""

from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows as left-aligned columns, each as wide as its widest cell."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def efficiency(rows: Sequence[dict[str, Any]]) -> str:
    """Tabulate what each device's slots delivered, from the fleet's telemetry."""

    def number(row: dict[str, Any], key: str, pattern: str) -> str:
        return pattern.format(row[key]) if row.get(key) is not None else "-"

    return table(
        [
            *("device", "slot", "release", "variant", "requests", "tokens/s"),
            *("TTFT p95 ms", "latency p95 ms", "peak MiB", "tokens/J"),
        ],
        [
            [
                *(str(row[key]) for key in ("group", "slot")),
                row["release"].partition("@")[2],
                *(str(row[key]) for key in ("variant", "requests")),
                number(row, "tokens_per_second", "{:.0f}"),
                number(row | {"ms": scaled(row, "ttft_p95_seconds")}, "ms", "{:.1f}"),
                number(row | {"ms": scaled(row, "latency_p95_seconds")}, "ms", "{:.1f}"),
                f"{int(row['peak_memory_bytes']) / 2**20:.0f}",
                number(row, "tokens_per_joule", "{:.2f}").replace("-", "unmeasured"),
            ]
            for row in rows
        ],
    )


def scaled(row: dict[str, Any], key: str) -> float | None:
    """Convert a field in seconds to milliseconds; None if it is missing."""
    value = row.get(key)
    return None if value is None else float(value) * 1000


def steps(report: dict[str, Any]) -> str:
    """Tabulate the steps: name, duration, result."""
    return table(
        ["step", "seconds", "result"],
        [
            [step["name"], f"{step['seconds']:.1f}", "ok" if step["ok"] else "FAILED"]
            for step in report["steps"]
        ],
    )
