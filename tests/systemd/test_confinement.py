"""The agent's unit permits its workers to confine themselves further."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from debian_box import ROOT, DebianBox, base_image, missing, wait_until

from runtimes.confinement import landlock

UNIT: Final = "flotilla-agent.service"
# All settings of the unit except its command, user and start conditions.
DROP_IN: Final = """
[Unit]
ConditionPathExists=
[Service]
Type=oneshot
Restart=no
WatchdogSec=0
LoadCredential=
User=nobody
Group=nogroup
ExecStart=
ExecStart=/usr/bin/python3 /opt/probe/probe.py
"""
PROBE: Final = """
import socket, threading
from pathlib import Path
from runtimes import confinement
def attempt(which):
    try:
        socket.socket()
    except PermissionError:
        print("no socket in", which)

def earlier():
    confined.wait()
    attempt("an earlier thread")

confined = threading.Event()
thread = threading.Thread(target=earlier)
thread.start()
locked = confinement.confine_files([Path("/opt/probe")])
called = confinement.confine_calls()
confined.set()
thread.join()
thread = threading.Thread(target=attempt, args=("a later thread",))
thread.start()
thread.join()
print("granted", confinement.granted(calls=called, landlock=locked))
"""


@pytest.mark.e2e
def test_the_units_sandbox_leaves_a_worker_the_means_to_confine_itself(
    tmp_path: Path, require: Callable[..., None]
) -> None:
    require("systemd", missing=missing())
    with DebianBox(base_image(), tmp_path).booted() as box:
        probe = box.root / "opt" / "probe"
        (probe / "runtimes").mkdir(parents=True)
        (probe / "probe.py").write_text(PROBE)
        shutil.copy(ROOT / "runtimes" / "__init__.py", probe / "runtimes")
        shutil.copytree(ROOT / "runtimes" / "confinement", probe / "runtimes" / "confinement")
        units = box.root / "etc" / "systemd" / "system"
        (units / f"{UNIT}.d").mkdir()
        (units / f"{UNIT}.d" / "probe.conf").write_text(DROP_IN)
        shutil.copy(ROOT / "scripts" / "packaging" / "agent" / UNIT, units)
        box.run("systemctl", "daemon-reload")
        box.run("systemctl", "start", UNIT, check=False)
        wait_until("the end", lambda: box.property(UNIT, "ActiveState") in {"inactive", "failed"})
        log = box.run("journalctl", "--unit", UNIT, "--output", "cat")
    assert "no socket in an earlier thread" in log, log
    assert "no socket in a later thread" in log, log
    granted = "seccomp+landlock" if landlock.version() else "seccomp"
    assert f"granted {granted}\n" in log, log
