"""sd_notify: one datagram to a path or an abstract name, and no effect outside systemd."""

import os
import socket
from pathlib import Path

import pytest

from agent.host.systemd import notify, watchdog_seconds


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_hears_the_state(
    abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"flotilla-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
        notify("READY=1", "STATUS=idle")
        assert manager.recv(100) == b"READY=1\nSTATUS=idle"


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/notify")
    notify("READY=1")


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [("30000000", "", 30.0), ("30000000", "1", None), ("", "", None), ("x", "", None)],
)
def test_the_watchdog_interval_is_for_this_process_only(
    microseconds: str, pid: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert watchdog_seconds() == seconds
    if pid == "":
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        assert watchdog_seconds() == seconds
