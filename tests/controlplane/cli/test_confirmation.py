"""Confirmation of changes that cannot be undone: terminals, scripts, --yes and --dry-run."""

import io
import json
from pathlib import Path

import pytest

from controlplane.cli.app import GlobalOptions, RefusedError
from controlplane.cli.confirmation import confirm, listed
from controlplane.cli.exit_codes import ExitCode

SETTINGS = GlobalOptions(context_path=Path("/nowhere"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "goes_on"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_a_terminal_is_asked(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    goes_on: bool,
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    if goes_on:
        assert confirm(SETTINGS, ["It goes."], yes=False)
    else:
        with pytest.raises(RefusedError) as refused:
            confirm(SETTINGS, ["It goes."], yes=False)
        assert refused.value.code is ExitCode.REFUSED
    assert "It goes." in capsys.readouterr().err


def test_piped_input_is_no_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(RefusedError) as refused:
        confirm(SETTINGS, ["It goes."], yes=False)
    assert refused.value.code is ExitCode.USAGE
    assert "--yes" in refused.value.advice
    assert confirm(SETTINGS, ["It goes."], yes=True)


def test_a_dry_run_changes_nothing_even_with_yes(capsys: pytest.CaptureFixture[str]) -> None:
    assert not confirm(SETTINGS, ["It goes."], yes=True, dry_run=True)
    assert "Nothing was changed" in capsys.readouterr().err
    assert not confirm(
        GlobalOptions(Path("/nowhere"), json=True), ["It goes."], yes=False, dry_run=True
    )
    assert json.loads(capsys.readouterr().out) == {"dry_run": True, "preview": ["It goes."]}


def test_a_preview_escapes_what_devices_chose(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    confirm(SETTINGS, [f"The device {chr(27)}[2J goes."], yes=False)
    assert chr(27) not in capsys.readouterr().err


def test_long_lists_are_cut() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(n) for n in range(23)]).endswith("19 and 3 more")
