"""Sizes, printed and parsed."""

import pytest

from artifact.sizes import in_bytes, parse_size


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


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        (512, 512),
        ("12 MiB", 12 << 20),
        ("64MiB", 64 << 20),
        ("2gib", 2 << 30),
        (" 1TiB ", 1 << 40),
        ("7B", 7),
    ],
)
def test_sizes_are_parsed(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "1.5GiB", "-1", "1 MB", "9" * 16, "1MiB1", "\u0661"])
def test_other_texts_are_not_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)
