"""A watcher outlives the server that it watches."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.cli.exit_codes import ExitCode

from .conftest import RELEASE, Server, fill_fleet


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Server]:
    """A server of this test's own, which it may kill; started again it has the same ports."""
    server = Server(tmp_path / "data")
    server.start()
    server.fill(fill_fleet)
    endpoints = json.loads((server.directory / "endpoints.json").read_text())
    server.ports = (endpoints["public"], endpoints["device"], endpoints["http"])
    yield server
    server.stop()


def test_watching_goes_on_when_the_server_is_killed_and_comes_back(mortal: Server) -> None:
    rollout = mortal.json("rollout", "start", RELEASE, "--to", "site=lab")
    watch = subprocess.Popen(
        [
            *(sys.executable, "-m", "controlplane", "--json"),
            *("--context", str(mortal.directory / "admin.json"), "rollout", "watch", rollout["id"]),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watch.stdout is not None
    first = json.loads(watch.stdout.readline())
    assert first["state"] in {"scheduled", "running"}
    mortal.process.kill()
    mortal.process.wait()
    mortal.start()
    mortal.json("rollout", "abort", rollout["id"])
    rest, errors = watch.communicate(timeout=60)
    assert watch.returncode == ExitCode.FAILED, errors
    assert "ended aborted" in errors
    assert json.loads(rest.splitlines()[-1])["state"] == "aborted"
    assert "waiting for it to come back" in errors
