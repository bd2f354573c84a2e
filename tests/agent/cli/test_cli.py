"""The agent's command: exit codes, advice, and a real daemon process."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.config import AgentConfig, DataDir, save_config
from agent.identity.keys import make_or_load_key, signing_request
from agent.journal import Assignment, HeldRelease, Journal, Pointers, Update
from agent.storage.atomic_file import write_file
from tests.agent.tls import Authority


def agent(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command and wait for its end."""
    return subprocess.run(
        [sys.executable, "-m", "agent", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=60,
    )


@contextmanager
def daemon(data_dir: DataDir, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run `flotilla-agent run`, and stop it on leaving the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "agent", "run", "--data-dir", str(data_dir.root)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def enrolled(tmp_path: Path) -> DataDir:
    """A box whose server does not exist."""
    data_dir = DataDir(tmp_path / "box")
    data_dir.root.mkdir()
    authority = Authority()
    key = make_or_load_key(data_dir)
    write_file(data_dir.ca, authority.pem)
    write_file(data_dir.image_root, b"{}")
    write_file(data_dir.director_root, b"{}")
    write_file(data_dir.certificate, authority.device(signing_request(key, "box-1")))
    save_config(
        data_dir,
        AgentConfig(
            device_id="device-1",
            name="box-1",
            labels={},
            server="127.0.0.1:1",
            device_endpoint="127.0.0.1:1",
            gateway="127.0.0.1:0",
            model_memory_bytes=1 << 20,
        ),
    )
    return data_dir


ENROLL = ("enroll", "--server", "127.0.0.1:1", "--name", "box-1", "--token")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("enroll",),
        ("enroll", "--server", "nowhere", "--name", "b", "--token", "t", "--data-dir", "d"),
        ("enroll", "--token", "t", "--data-dir", "d", "--name", "b"),
        ("enroll", "--token", "t", "--data-dir", "d", "--server", "a:1"),
        ("enroll", "--recover", "--token", "t", "--data-dir", "d", "--name", "b"),
        (*ENROLL, "t", "--data-dir", "d", "--label", "novalue"),
        (*ENROLL, "t", "--data-dir", "d", "--model-memory", "much"),
        ("run",),
        ("status", "--data-dir", __file__),
    ],
)
def test_misuse_exits_with_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = agent(*arguments)
    assert result.returncode == 2, result.stderr
    assert "Usage" in result.stderr


def test_what_is_refused_exits_with_1_and_advice(tmp_path: Path) -> None:
    result = agent(*ENROLL, "rubbish", "--data-dir", str(tmp_path / "box"))
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "flotilla token create" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "box").exists()


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_box_that_is_not_enrolled_is_told_to(command: str, tmp_path: Path) -> None:
    result = agent(command, "--data-dir", str(tmp_path))
    assert result.returncode == 1
    assert "flotilla-agent enroll" in result.stderr


def test_the_status_of_a_stopped_agent_is_read_from_its_journal(enrolled: DataDir) -> None:
    held = HeldRelease(reference="acme/a@1", manifest=b"", manifest_sha256="")
    assignment = Assignment(generation=4, release="acme/a@2", manifest_sha256="")
    journal = Journal(enrolled.journal)
    journal.record(
        update=Update(assignment=assignment, state="rejected", detail="too big"),
        pointers=Pointers(current=held),
    )
    journal.close()
    text = agent("status", "--data-dir", str(enrolled.root)).stdout
    assert "not running" in text
    assert "acme/a@1" in text
    assert "too big" in text
    found = json.loads(agent("status", "--data-dir", str(enrolled.root), "--json").stdout)
    assert found["running"] is False
    assert found["update"]["generation"] == 4
    assert found["update"]["current_release"] == "acme/a@1"


def test_a_daemon_serves_its_status_and_ends_on_sigterm(enrolled: DataDir, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(30)
        with daemon(enrolled, NOTIFY_SOCKET=address) as process:
            heard = _hear(manager, b"READY=1")
            status = _status(enrolled)
            assert status["running"] is True
            assert status["name"] == "box-1"
            assert status["connected"] is False
            second = agent("run", "--data-dir", str(enrolled.root))
            assert second.returncode == 1
            assert str(process.pid) in second.stderr
            process.send_signal(signal.SIGTERM)
            heard += _hear(manager, b"STOPPING=1")
            assert process.wait(30) == 0
    assert b"READY=1" in heard
    assert not enrolled.gateway.exists()
    assert "not running" in agent("status", "--data-dir", str(enrolled.root)).stdout


def test_a_killed_daemon_gives_its_data_directory_free(enrolled: DataDir) -> None:
    with daemon(enrolled) as process:
        _wait_until_up(process)
        process.kill()
        process.wait(30)
    with daemon(enrolled) as process:
        _wait_until_up(process)


def test_no_file_of_a_box_is_readable_by_others(enrolled: DataDir) -> None:
    """In a folder of mode 755, with a shell's umask of 022 and files of an earlier start."""
    enrolled.root.chmod(0o755)
    enrolled.facts.write_bytes(b"{}")
    enrolled.facts.chmod(0o644)
    before = os.umask(0o022)
    try:
        with daemon(enrolled) as process:
            _wait_until_up(process)
            found = {path.name: path.stat().st_mode & 0o077 for path in enrolled.root.rglob("*")}
    finally:
        os.umask(before)
    assert {"telemetry.db", "telemetry.db-wal", "journal.db-wal", "store"} <= found.keys()
    assert [name for name, open_to_others in found.items() if open_to_others] == []


@pytest.mark.parametrize("command", ["bench", "run", "status"])
@pytest.mark.parametrize("place", ["/proc/x", f"{__file__}/box"])
def test_a_data_directory_that_cannot_be_used_is_refused_with_advice(
    place: str, command: str
) -> None:
    result = agent(command, "--data-dir", place)
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith("error: ")
    assert place in result.stderr
    assert len(result.stderr.splitlines()) == 2


def test_a_daemon_with_a_damaged_journal_runs_and_says_so(enrolled: DataDir) -> None:
    journal = Journal(enrolled.journal)
    journal.record(
        update=Update(
            assignment=Assignment(generation=4, release="", manifest_sha256=""), state="idle"
        )
    )
    journal.raise_floors({"image/timestamp": 7})
    journal.close()
    enrolled.journal.write_bytes(b"not what was written" * 1000)
    with daemon(enrolled) as process:
        said = _wait_until_up(process)
        assert _status(enrolled)["update"]["generation"] == 4
    assert "journal_repaired" in said
    assert enrolled.journal.stat().st_mode & 0o777 == 0o600
    journal = Journal(enrolled.journal, repair=False)
    assert journal.floors() == {"image/timestamp": 7}
    journal.close()


def test_a_certificate_for_another_key_is_told(enrolled: DataDir, tmp_path: Path) -> None:
    other = DataDir(tmp_path)
    authority = Authority()
    write_file(enrolled.ca, authority.pem)
    csr = signing_request(make_or_load_key(other), "box-1")
    write_file(enrolled.certificate, authority.device(csr))
    result = agent("run", "--data-dir", str(enrolled.root))
    assert result.returncode == 1
    assert "another key" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_taken_gateway_address_is_told(enrolled: DataDir) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = enrolled.config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}")
        write_file(enrolled.config, text.encode())
        result = agent("run", "--data-dir", str(enrolled.root))
    assert result.returncode == 1
    assert f"127.0.0.1:{port}" in result.stderr
    assert "Traceback" not in result.stderr


def _status(data_dir: DataDir) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        agent("status", "--data-dir", str(data_dir.root), "--json").stdout
    )
    return found


def _hear(manager: socket.socket, wanted: bytes) -> bytes:
    heard = b""
    while wanted not in heard:
        heard += manager.recv(4096) + b"\n"
    return heard


def _wait_until_up(process: subprocess.Popen[str]) -> str:
    """Return its log so far."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if "agent_started" in line:
            return said
    pytest.fail("the daemon ended before it was up")
