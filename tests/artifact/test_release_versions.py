"""Release versions have the order of Semantic Versioning 2.0.0, section 11."""

import itertools

import pytest

from artifact.manifest import parse_version

# The example of the specification, with neighbours.
ASCENDING = [
    "0",
    "0.9.10",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.0.1",
    "1.1",
    "2",
    "10.0.0",
]


def test_versions_are_ordered_as_the_specification_says() -> None:
    for lower, higher in itertools.combinations(ASCENDING, 2):
        first, second = parse_version(lower), parse_version(higher)
        assert first is not None
        assert second is not None
        assert first < second, (lower, higher)
        assert not second < first


@pytest.mark.parametrize(("one", "other"), [("1", "1.0.0"), ("1.2", "1.2.0"), ("1.0.0+a", "1.0.0")])
def test_missing_numbers_are_zero_and_builds_do_not_count(one: str, other: str) -> None:
    assert parse_version(one) == parse_version(other)


@pytest.mark.parametrize(
    "text", ["", "latest", "v1.0.0", "1.0.0.0", "1..0", "1.0-", "2026-12-01x!", "1.0.0-a..b"]
)
def test_other_texts_are_not_versions(text: str) -> None:
    assert parse_version(text) is None
