"""The demo, run like a user runs it, and the facts that its report must show."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("demo") / "report.json"
    result = subprocess.run(
        [sys.executable, "-m", "demo_fleet", "--json", str(path)],
        cwd=ROOT / "scripts",
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def step(report: dict[str, Any], opening: str) -> dict[str, Any]:
    found = [step for step in report["steps"] if step["name"].startswith(opening)]
    assert len(found) == 1, opening
    facts: dict[str, Any] = found[0]["facts"]
    return facts


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("opening", "version"),
    [
        ("publish release 1", "1.0.0"),
        ("publish release 2", "2.0.0"),
        ("publish release 3", "2.0.0"),
        ("roll release 2 back", "1.0.0"),
    ],
)
def test_every_device_is_on_the_right_release_after_each_step(
    report: dict[str, Any], opening: str, version: str
) -> None:
    devices = step(report, opening)["devices"]
    assert len(devices) >= 4
    assert {row["release"] for row in devices.values()} == {f"acme/assistant@{version}"}


@pytest.mark.e2e
def test_budgets_lead_to_different_variants_each_with_its_explanation(
    report: dict[str, Any],
) -> None:
    facts = step(report, "publish release 1")
    assert len({row["chat"] for row in facts["devices"].values()}) >= 2
    for name, row in facts["devices"].items():
        decisions = {decision["slot"]: decision for decision in facts["explanations"][name]}
        assert decisions["chat"]["chosen_variant"] == row["chat"]
        assert all(candidate["reason"] for candidate in decisions["chat"]["candidates"])


@pytest.mark.e2e
def test_both_runtimes_are_used(report: dict[str, Any]) -> None:
    assert {"llama_cpp", "onnx"} <= set(step(report, "publish release 1")["runtimes"])


@pytest.mark.e2e
def test_no_request_fails_across_the_swaps(report: dict[str, Any]) -> None:
    for opening in ("publish release 2", "publish release 3", "roll release 2 back"):
        facts = step(report, opening)
        assert facts["requests"] > 0
        assert facts["failed_requests"] == 0


@pytest.mark.e2e
def test_the_broken_release_is_undone_at_its_canary(report: dict[str, Any]) -> None:
    canary = step(report, "publish release 3")["canary"]
    assert len(canary) == 1
    assert "probation" in canary[0]["detail"]


@pytest.mark.e2e
def test_the_rollback_downloads_nothing(report: dict[str, Any]) -> None:
    assert step(report, "roll release 2 back")["bytes_downloaded"] == 0
