"""What the documents say of tests is true: every test that they name exists."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
ATTACKS = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.compile(r"`([^`]+)`")


def rows(document: str, heading: str) -> Iterator[tuple[str, str]]:
    """(what, tests) of every row of the tables below a heading."""
    below = document.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    for line in below.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("|") and len(cells) > 1 and set(line) - set("|- "):
            yield cells[0], cells[1]


def is_there(test: str) -> bool:
    """``path``, or ``path::function``; paths start at the tests, or at the root as tests/..."""
    path, _, function = test.partition("::")
    file = TESTS / path.removeprefix("tests/")
    if not function:
        return file.exists()
    code = file.read_text(encoding="utf-8") if file.is_file() else ""
    return re.search(rf"^(?:async )?def {re.escape(function)}\(", code, re.MULTILINE) is not None


@pytest.mark.parametrize(
    ("document", "heading", "least"),
    [(ATTACKS, "Attacks", 70), (README, "What it promises", 5)],
    ids=["attacks", "promises"],
)
def test_every_row_names_tests_that_exist(document: str, heading: str, least: int) -> None:
    found = [row for row in rows(document, heading) if row[1] not in {"test", "held by"}]
    assert len(found) >= least
    for what, cell in found:
        tests = CODE.findall(cell)
        assert tests, what
        assert [test for test in tests if not is_there(test)] == [], what


def test_every_path_below_the_tests_exists() -> None:
    for document in (ATTACKS, README, (ROOT / "docs" / "operations.md").read_text("utf-8")):
        named = {code for code in CODE.findall(document) if code.startswith("tests/")}
        assert [test for test in named if not is_there(test)] == []


def test_a_test_that_is_not_there_is_noticed() -> None:
    assert is_there("test_documents.py::is_there")
    assert not is_there("test_documents.py::is_not_there")
    assert not is_there("test_nothing.py")
