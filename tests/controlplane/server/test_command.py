"""`flotilla serve` as a process: files, lock, ports and shutdown."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import ssl
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from operator_cli import Operator, document

FLOTILLA = str(Path(sys.executable).parent / "flotilla")
PORTS = ("--public", "127.0.0.1:0", "--device", "127.0.0.1:0", "--http", "127.0.0.1:0")


@contextmanager
def serving(data_dir: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [FLOTILLA, "serve", "--data-dir", str(data_dir), *PORTS, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "server_started" in line:
                break
        else:
            raise AssertionError(f"it ended with {process.wait()}")
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def get(address: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
        assert answer.status == 200
        return str(answer.read().decode())


def schema_of(data_dir: Path) -> str:
    with contextlib.closing(sqlite3.connect(data_dir / "flotilla.db")) as database:
        return str(database.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def downgraded(data_dir: Path, schema: str) -> "subprocess.CompletedProcess[str]":
    command = [FLOTILLA, "serve", "--data-dir", str(data_dir), "--downgrade-schema", schema]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_schema_is_taken_back_for_an_older_version(tmp_path: Path) -> None:
    with serving(tmp_path):
        now = schema_of(tmp_path)
        running = downgraded(tmp_path, "0005")
        assert running.returncode != 0
        assert "another control plane runs" in running.stderr
        assert schema_of(tmp_path) == now
    unknown = downgraded(tmp_path, "0042")
    assert unknown.returncode != 0
    assert f"this version knows 0001 to {now}" in unknown.stderr
    assert downgraded(tmp_path, "0005").returncode == 0
    assert schema_of(tmp_path) == "0005"
    with serving(tmp_path):
        assert schema_of(tmp_path) == now


def test_a_first_start_makes_all_there_is_and_a_second_keeps_it(tmp_path: Path) -> None:
    data_dir = tmp_path / "new" / "data"
    with serving(data_dir) as process:
        endpoints = json.loads((data_dir / "endpoints.json").read_text())
        admin = json.loads((data_dir / "admin.json").read_text())
        assert admin["server"] == endpoints["public"]
        assert stat.S_IMODE((data_dir / "admin.json").stat().st_mode) == 0o600
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        host, _, port = endpoints["public"].rpartition(":")
        context = ssl.create_default_context(cadata=admin["ca_pem"])
        with (
            socket.create_connection((host, int(port)), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as tls,
        ):
            assert tls.version() in {"TLSv1.2", "TLSv1.3"}
        assert get(endpoints["http"], "/healthz") == "ok\n"
        assert get(endpoints["http"], "/readyz") == "ok\n"
        assert "flotilla_device_streams 0.0" in get(endpoints["http"], "/metrics")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) == 0
    with serving(data_dir):
        assert json.loads((data_dir / "admin.json").read_text()) == admin


def test_nothing_is_readable_by_others_whatever_the_folders_mode(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    (data_dir / "chunks").mkdir(parents=True)
    (data_dir / "flotilla.db").touch(0o644)
    for folder in (data_dir, data_dir / "chunks"):
        folder.chmod(0o755)
    with serving(data_dir):
        made = [data_dir, *data_dir.rglob("*")]
        assert len(made) > 10
        assert [path for path in made if path.stat().st_mode & 0o077] == []


def test_a_new_admin_is_written_locally(tmp_path: Path) -> None:
    with serving(tmp_path):
        first = json.loads((tmp_path / "admin.json").read_text())
    with serving(tmp_path, "--new-admin"):
        second = json.loads((tmp_path / "admin.json").read_text())
        assert second["token"] != first["token"]
        operator = Operator(tmp_path / "admin.json", tmp_path / "keys")
        tokens = document(operator.run("access", "token", "list", as_json=True))
        assert "recovered admin" in str(tokens)
    with serving(tmp_path):
        assert json.loads((tmp_path / "admin.json").read_text()) == second


def test_two_cannot_share_a_data_directory(tmp_path: Path) -> None:
    with serving(tmp_path):
        second = subprocess.run(
            [FLOTILLA, "serve", "--data-dir", str(tmp_path), *PORTS],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert second.returncode == 1
        assert "another control plane runs on" in second.stderr
        assert "Traceback" not in second.stderr
    # The lock of a killed process is released by the kernel.
    with serving(tmp_path):
        pass


@pytest.mark.parametrize("port", ["--public", "--device", "--http"])
def test_a_taken_port_is_named(tmp_path: Path, port: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = subprocess.run(
            [FLOTILLA, "serve", "--data-dir", str(tmp_path), *PORTS, port, address],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert result.returncode == 1
    assert f"cannot listen on {address}" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "wrong", [("--public", "nowhere"), ("--http", "a:99999"), ("--hostname", "no host")]
)
def test_bad_settings_are_refused(tmp_path: Path, wrong: tuple[str, str]) -> None:
    result = subprocess.run(
        [FLOTILLA, "serve", "--data-dir", str(tmp_path), *PORTS, *wrong],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    # A mistake of usage.
    assert result.returncode == 2
    assert wrong[1] in result.stderr
    assert "Traceback" not in result.stderr


def test_systemd_hears_when_it_is_ready_that_it_lives_and_when_it_stops(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(20)
        environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"}
        with serving(tmp_path / "data", **environment) as process:
            heard = [manager.recv(100) for _ in range(4)]
            assert heard.count(b"READY=1") == 1
            assert heard.count(b"WATCHDOG=1") == 3
            process.send_signal(signal.SIGTERM)
            while heard[-1] != b"STOPPING=1":
                heard.append(manager.recv(100))
            assert process.wait(20) == 0
