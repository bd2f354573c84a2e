import pytest

from controlplane.errors import InvalidInputError, InvalidSelectorError
from controlplane.fleet import check_labels, parse_selector
from controlplane.fleet.selector import MAX_LENGTH, MAX_TERMS, MAX_VALUES

LAB = {"site": "lab", "tier": "canary", "gpu": ""}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("  ", True),
        ("site=lab", True),
        ("site==lab", True),
        (" site = lab , gpu ", True),
        ("site=field", False),
        ("site!=field", True),
        ("site!=lab", False),
        ("owner!=me", True),
        ("gpu", True),
        ("!gpu", False),
        ("!retired", True),
        ("retired", False),
        ("gpu=", True),
        ("site=lab,tier!=canary", False),
        ("site=lab,tier!=canary,gpu,!retired", False),
        ("site=lab,tier=canary,gpu,!retired", True),
        ("site in (lab, field)", True),
        ("site in (field)", False),
        ("site notin (field,attic),gpu", True),
        ("site notin (lab)", False),
        ("owner notin (me)", True),
        ("owner in (me)", False),
        ("in=out", False),
    ],
)
def test_selector_matches_as_it_reads(text: str, matches: bool) -> None:
    assert parse_selector(text).matches(LAB) is matches


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("site=lab,", "''"),
        (",", "''"),
        ("=lab", "'=lab'"),
        ("site=la b", "'site=la b'"),
        ("site=lab;tier=x", "'site=lab;tier=x'"),
        ("!site=lab", "'!site=lab'"),
        ("site in lab", "'site in lab'"),
        ("site in (lab,)", "''"),
        ("site in (lab", "'site in (lab'"),
        ("site in ((lab))", "'site in ((lab))'"),
        ("site>lab", "'site>lab'"),
        ("k" * 64, "k" * 64),
    ],
)
def test_malformed_term_is_named_with_advice(text: str, wrong: str) -> None:
    with pytest.raises(InvalidSelectorError) as caught:
        parse_selector(text)
    assert wrong in str(caught.value)
    assert caught.value.advice


def test_selector_is_bounded() -> None:
    with pytest.raises(InvalidSelectorError, match="1025 characters"):
        parse_selector("a" * 1025)
    with pytest.raises(InvalidSelectorError, match="33 terms"):
        parse_selector(",".join(["a"] * 33))
    with pytest.raises(InvalidSelectorError, match="65 values"):
        parse_selector(f"a in ({','.join(['b'] * 65)})")


def test_labels_are_bounded_and_well_formed() -> None:
    check_labels(LAB)
    for labels in (
        {"": "x"},
        {"a b": "x"},
        {"a": "x\n"},
        {"a": "x" * 64},
        {f"k{n}": "" for n in range(65)},
    ):
        with pytest.raises(InvalidInputError):
            check_labels(labels)


@pytest.mark.parametrize(
    "text",
    [
        "site=lab" + " " * (MAX_LENGTH - len("site=lab")),
        ",".join(["gpu"] * MAX_TERMS),
        f"site in ({','.join(['lab'] * MAX_VALUES)})",
    ],
)
def test_a_selector_at_its_bound_is_accepted(text: str) -> None:
    assert parse_selector(text).matches(LAB)
