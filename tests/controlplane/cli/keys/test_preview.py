"""Bounds of the preview of a withdrawal, and a token that may not read devices."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.cli.app import GlobalOptions, RefusedError
from controlplane.cli.exit_codes import ExitCode
from controlplane.cli.keys import preview
from controlplane.cli.keys.preview import Withdrawn, confirm_withdrawal

SETTINGS = GlobalOptions(context_path=Path("/nowhere"))
RELEASE = "acme/assistant@1.0.0"


def test_a_preview_of_a_large_fleet_is_bounded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    devices = tuple(f"box-{n}" for n in range(5000))
    plan = [Withdrawn(f"acme/assistant@{n}", devices) for n in range(50)]
    monkeypatch.setattr(preview, "_running", lambda *_: plan)
    assert not confirm_withdrawal(SETTINGS, [], yes=False, dry_run=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("box-19 and 4980 more")
    assert lines[-2] == "and 30 more releases"
    assert len(lines) == 22


def test_a_token_that_may_not_read_devices_sees_the_releases(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.contextmanager
    def denied(_: GlobalOptions) -> Iterator[None]:
        raise RefusedError("a token of another role", exit_code=ExitCode.DENIED)
        yield

    monkeypatch.setattr(preview, "connect", denied)
    assert not confirm_withdrawal(SETTINGS, [RELEASE], yes=False, dry_run=True)
    shown = capsys.readouterr().err
    assert f"withdraws {RELEASE}" in shown
    assert "cannot be listed: a token of another role" in shown
