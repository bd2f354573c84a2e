"""The units' exposure, as systemd-analyze rates it, stays low."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

PACKAGING = Path(__file__).parents[2] / "scripts" / "packaging"
# systemd-analyze rates from 0 (fully confined) to 100 (root without limits), and prints a tenth.
MOST_EXPOSURE = 15


UNITS = ["agent/flotilla-agent.service", "server/flotilla-server.service"]


@pytest.mark.parametrize("unit", UNITS)
def test_the_exposure_of_a_unit_is_at_most_1_5(unit: str, require: Callable[..., None]) -> None:
    tool = shutil.which("systemd-analyze")
    require("systemd", missing=None if tool else "systemd-analyze is not installed")
    result = subprocess.run(
        [
            *("systemd-analyze", "security", "--no-pager", "--offline=true"),
            *(f"--threshold={MOST_EXPOSURE}", str(PACKAGING / unit)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Overall exposure level" in result.stdout


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_reads_every_line_of_a_unit_but_those_that_are_too_new_for_it(
    unit: str, tmp_path: Path, require: Callable[..., None]
) -> None:
    tool = shutil.which("systemd-analyze")
    require("systemd", missing=None if tool else "systemd-analyze is not installed")
    # The unit's command is not installed here.
    text = re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", (PACKAGING / unit).read_text())
    installed = tmp_path / Path(unit).name
    installed.write_text(text)
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(installed)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    said = [line for line in result.stderr.splitlines() if installed.name in line]
    too_new = re.compile(r"Unknown key( name)? 'Restart(Steps|MaxDelaySec)' in section")
    assert [line for line in said if not too_new.search(line)] == []


@pytest.mark.parametrize("unit", UNITS)
def test_no_number_of_restarts_leaves_a_unit_dead(unit: str) -> None:
    lines = (PACKAGING / unit).read_text().splitlines()
    assert {"StartLimitIntervalSec=0", "Restart=always", "RestartMaxDelaySec=60"} <= set(lines)


@pytest.mark.parametrize("unit", UNITS)
def test_a_crash_leaves_no_core_with_keys_or_texts(unit: str) -> None:
    assert "LimitCORE=0" in (PACKAGING / unit).read_text().splitlines()
