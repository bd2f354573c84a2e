"""YAML with bounds: hostile texts end quickly with the line that is wrong."""

import time

import pytest

from artifact.yaml_text import MAX_DEPTH, YamlTextError, read_yaml


def test_a_document_knows_its_lines() -> None:
    text = read_yaml("name: a\nwaves:\n  - {count: 1}\n  - count: 2\n")
    assert text.value == {"name": "a", "waves": [{"count": 1}, {"count": 2}]}
    assert [text.line_of(place) for place in (".name", ".waves[1].count", ".waves[9]", "")] == [
        1,
        4,
        3,
        1,
    ]


def test_a_blank_text_has_no_value() -> None:
    assert read_yaml(" \n# nothing\n").value is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 65_000, "line 1: the text nests deeper than 32 levels"),
        ("- " * 30_000, "nests deeper than 32"),
        ("{a: " * 15_000, "nests deeper than 32"),
        ("? " * 30_000, "nests deeper than 32"),
        ("a: &x [1]\nb: *x", "line 2: YAML aliases are not supported"),
        ("a: 1\nb: {c: 1, c: 2}", "line 2: the key 'c' occurs twice"),
        ("a: [1\nb: 2", "line 2"),
        ("[" + "1," * 200_000 + "]", "has more than 100000 values"),
        ("a: " + "9" * 5000, "a number has 5000 characters; the maximum is 64"),
        # An integer to the base of 60, which took a second of arithmetic.
        ("a: " + "1:" * 30_000 + "1", "line 1: a number has 60001 characters"),
        ("a\0b", "unacceptable character"),
        ("--- 1\n--- 2", "line 2"),
        ("!!python/object/apply:os.system [id]", "could not determine a constructor"),
    ],
)
def test_what_is_wrong_is_named_and_found_quickly(text: str, message: str) -> None:
    started = time.process_time()
    with pytest.raises(YamlTextError, match=message):
        read_yaml(text)
    # A guard against hanging, far above the time of bounded reading; 65,000 brackets took 30 s.
    assert time.process_time() - started < 15


def test_the_deepest_allowed_text_is_read() -> None:
    read_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(YamlTextError):
        read_yaml("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
