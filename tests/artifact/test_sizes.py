"""Sizes in words."""

import pytest

from artifact.sizes import in_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (5 << 30, "5.0 GiB"),
        (1 << 50, "1024.0 TiB"),
    ],
)
def test_sizes_in_binary_units(count: int, text: str) -> None:
    assert in_bytes(count) == text


def test_more_decimals_where_they_are_asked_for() -> None:
    assert in_bytes((5 << 20) + (1 << 14), 2) == "5.02 MiB"
    assert in_bytes(5, 2) == "5 B"
