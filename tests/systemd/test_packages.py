"""Both packages in a booted Debian: installation, enrolment by credential, recovery from faults.

Models and engines are real and run in the units' sandbox.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from debian_box import (
    CACHE,
    MEMORY_CONTROLLER,
    ROOT,
    BoxError,
    DebianBox,
    base_image,
    missing,
    wait_until,
)
from demo_fleet.models import build_model
from demo_fleet.processes import command, free_port
from demo_fleet.traffic import call

AGENT = "flotilla-agent.service"
SERVER = "flotilla-server.service"
PASSPHRASE = "only for this test"
PROMPT = "The import statement "
MIB = 1 << 20
# Files that may remain: the records of apt, dpkg and systemd about their own work.
NOT_OURS = (
    "/etc/.pwd.lock",
    "/etc/group-",
    "/etc/gshadow-",
    "/etc/ld.so.cache",
    "/etc/passwd-",
    "/etc/shadow-",
    "/etc/subgid-",
    "/etc/subuid-",
    "/root/",
    "/var/cache/",
    "/var/lib/apt/",
    "/var/lib/dpkg/",
    "/var/lib/systemd/",
    "/var/log/",
)


@dataclass
class Fleet:
    """A box with a control plane and an agent, and an operator's commands."""

    box: DebianBox
    directory: Path
    ports: tuple[int, int, int]

    def cli(self, *arguments: str) -> dict[str, Any]:
        """Return the JSON document printed by an operator's command."""
        context = self.box.root / "var/lib/flotilla-server/admin.json"
        result = subprocess.run(
            [command("flotilla"), "--context", str(context), "--json", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={"FLOTILLA_KEY_PASSPHRASE": PASSPHRASE, "PATH": "/usr/bin:/bin"},
            check=False,
            timeout=120,
        )
        if result.returncode != 0:
            raise BoxError(f"flotilla {' '.join(arguments)}:\n{result.stderr[-2000:]}")
        document: dict[str, Any] = json.loads(result.stdout)
        return document

    def install(self, package: Path) -> None:
        """Install with apt; all dependencies are present."""
        self.box.run("apt-get", "install", "-y", "-q", self.bring(package))

    def bring(self, file: Path) -> str:
        """Return the path of a host's file in the box."""
        shutil.copy(file, self.box.root / "root" / file.name)
        return f"/root/{file.name}"

    def start_server(self, package: Path) -> None:
        settings = self.box.root / "etc/flotilla/server.env"
        settings.parent.mkdir(exist_ok=True)
        public, device, http = self.ports
        options = f"--public 127.0.0.1:{public} --device 127.0.0.1:{device}"
        settings.write_text(f"FLOTILLA_SERVE_OPTIONS={options} --http 127.0.0.1:{http}\n")
        self.install(package)
        wait_until("the server", lambda: self.box.property(SERVER, "SubState") == "running")
        self.cli("keys", "init", "--publisher", "acme", "--dir", str(self.directory / "keys"))

    def install_agent(self, package: Path, *more: str, token: str | None = None) -> str:
        """Run scripts/install_agent with a fresh join token on its standard input."""
        if token is None:
            token = self.cli("token", "create", "--uses", "1")["secret"]
        script = self.bring(ROOT / "scripts" / "install_agent")
        return self.box.run(
            *("sh", script, "--package", self.bring(package)),
            *("--server", f"127.0.0.1:{self.ports[0]}", "--name", "box-1"),
            *("--label", "site=lab", "--gateway", "127.0.0.1:0", *more),
            text=token,
        )

    def roll_out(self) -> None:
        models = self.directory / "models"
        subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "build_demo_models"), str(models)],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=300,
        )
        golden = json.loads((models / "digits-golden.json").read_text())
        language = build_model(
            [models / "base.gguf"], "acme/tiny", "1", models / "tiny", ("q8=llama_cpp:q8_0",)
        )
        digits = build_model(
            [models / "digits.onnx"], "acme/digits", "1", models / "digits", ("fp32=onnx:fp32",)
        )
        release = {
            "name": "acme/assistant",
            "version": "1",
            "components": [
                {"slot": "chat", "model": str(language)},
                {"slot": "vision", "model": str(digits)},
            ],
            "routes": [{"name": "assistant", "slot": "chat"}, {"name": "digits", "slot": "vision"}],
            "probation": {
                "checks": [{"check": "tensor", "name": "reads-digits", "slot": "vision", **golden}],
                "soak_seconds": 0,
            },
        }
        path = self.directory / "release.yaml"
        path.write_text(yaml.safe_dump(release))
        self.cli("publish", str(path), "--keys", str(self.directory / "keys"))
        self.cli("rollout", "start", "acme/assistant@1", "--to", "site=lab")
        wait_until("the release being served", self.serves, 120)

    def status(self) -> dict[str, Any]:
        """Return the output of `flotilla-agent status` in the box; empty if it fails."""
        text = self.box.run("sh", "-c", "flotilla-agent status --json 2>/dev/null", check=False)
        found: dict[str, Any] = json.loads(text) if text.startswith("{") else {}
        return found

    def serves(self) -> bool:
        return bool(self.status().get("serves") == "acme/assistant@1" and self.answers())

    def answers(self) -> bool:
        """Check that a local program gets text from the model."""
        body = {"model": "assistant", "prompt": PROMPT, "max_tokens": 8}
        try:
            bound = json.loads((self.box.root / "var/lib/flotilla/gateway.json").read_text())
            status, answer = call(bound["address"], "/v1/completions", body)
        except (OSError, ValueError):
            return False
        return status == 200 and bool(answer["choices"][0]["text"])

    def workers(self) -> list[int]:
        """Return the process ids, in the box, of the loaded models."""
        found = self.box.run("pgrep", "-f", "agent[.]worker", check=False)
        return sorted(map(int, found.split()))

    def main_pid(self, unit: str = AGENT) -> int:
        """Return the unit's main process; BoxError while it has none."""
        pid = int(self.box.property(unit, "MainPID"))
        if pid == 0:
            raise BoxError(f"{unit} has no process now")
        return pid

    def restarted(self, dead: int, unit: str = AGENT) -> bool:
        """Check that the unit has another main process than the dead one."""
        return int(self.box.property(unit, "MainPID")) not in {0, dead}

    def recovered(self, dead: int) -> bool:
        """Check that another daemon serves instead of the dead one."""
        return self.restarted(dead) and self.serves()


def _no_shortage() -> str | None:
    """Return why memory cannot be limited here; None if it can."""
    if os.environ.get("FLOTILLA_TEST_OOM") != "1":
        return "FLOTILLA_TEST_OOM=1 is not set (who watches this machine may take it for short)"
    if not (MEMORY_CONTROLLER / "memory.limit_in_bytes").exists():
        return "no memory controller of cgroup version 1"
    return None


@pytest.fixture(scope="session")
def packages(require: Callable[..., None]) -> dict[str, Path]:
    """Build both packages from this checkout."""
    require("systemd", missing=missing())
    built = {}
    for side in ("agent", "server"):
        result = subprocess.run(
            [ROOT / "scripts" / "build_deb", side, "--native", "--out", CACHE / "packages"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=1800,
        )
        built[side] = Path(result.stdout.strip().splitlines()[-1])
    return built


def new_fleet(directory: Path) -> Fleet:
    return Fleet(
        DebianBox(base_image(), directory), directory, (free_port(), free_port(), free_port())
    )


@pytest.fixture(scope="module")
def fleet(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A box that serves a release with both engines; every test restores this state."""
    fleet = new_fleet(tmp_path_factory.mktemp("box"))
    with fleet.box.booted():
        fleet.start_server(packages["server"])
        printed = fleet.install_agent(packages["agent"])
        assert "running, connected" in printed or "running, not connected" in printed, printed
        fleet.roll_out()
        yield fleet


@pytest.mark.e2e
def test_both_engines_work_in_the_sandbox_and_the_token_is_gone(fleet: Fleet) -> None:
    status = fleet.status()
    assert {slot["runtime"] for slot in status["slots"].values()} == {"llama_cpp", "onnx"}
    assert status["name"] == "box-1"
    assert not (fleet.box.root / "etc/credstore/flotilla.join-token").exists()
    owner = fleet.box.run("stat", "-c", "%U %a", "/var/lib/flotilla", "/var/lib/flotilla-server")
    assert owner.split() == ["flotilla", "700", "flotilla-server", "700"]


@pytest.mark.e2e
def test_when_memory_runs_out_workers_go_before_the_daemon(fleet: Fleet) -> None:
    def score(pid: int) -> int:
        return int(fleet.box.run("cat", f"/proc/{pid}/oom_score_adj"))

    # A container without CAP_SYS_RESOURCE cannot lower the daemon's score; the order still holds.
    assert fleet.box.property(AGENT, "OOMScoreAdjust") == "-200"
    assert len(fleet.workers()) == 2
    assert all(score(pid) >= score(fleet.main_pid()) + 500 for pid in fleet.workers())
    assert fleet.box.property(AGENT, "OOMPolicy") == "continue"


@pytest.mark.e2e
def test_a_daemon_outlives_its_workers_in_exhausted_memory_and_serves_when_there_is_some(
    fleet: Fleet, require: Callable[..., None]
) -> None:
    require("out-of-memory", missing=_no_shortage())
    daemon, workers = fleet.main_pid(), fleet.workers()
    with fleet.box.short_of_memory(daemon, 256 * MIB, left_bytes=16 * MIB) as killed:
        fleet.box.run("kill", "-9", *map(str, workers))
        wait_until("workers being killed for memory", lambda: killed() >= 2)
        assert fleet.main_pid() == daemon
        assert fleet.status()["running"]
    wait_until("answers", fleet.serves, 120)
    assert fleet.main_pid() == daemon


@pytest.mark.e2e
def test_a_killed_worker_comes_back_under_the_same_daemon(fleet: Fleet) -> None:
    daemon, workers = fleet.main_pid(), fleet.workers()
    fleet.box.run("kill", "-9", *map(str, workers))
    wait_until("new workers", lambda: len(set(fleet.workers()) - set(workers)) == 2)
    wait_until("answers", fleet.serves)
    assert fleet.main_pid() == daemon


@pytest.mark.e2e
def test_a_killed_daemon_comes_back_with_its_models_and_leaves_no_worker(fleet: Fleet) -> None:
    daemon, workers = fleet.main_pid(), fleet.workers()
    fleet.box.run("kill", "-9", str(daemon))
    wait_until("another daemon that serves", lambda: fleet.recovered(daemon))
    assert not set(fleet.workers()) & set(workers)


@pytest.mark.e2e
def test_a_daemon_that_hangs_is_replaced_by_the_watchdog(fleet: Fleet) -> None:
    directory = f"/run/systemd/system/{AGENT}.d"
    fleet.box.run("mkdir", "-p", directory)
    fleet.box.run("tee", f"{directory}/patience.conf", text="[Service]\nWatchdogSec=10\n")
    fleet.box.run("systemctl", "daemon-reload")
    fleet.box.run("systemctl", "restart", AGENT)
    daemon = fleet.main_pid()
    wait_until("serving", fleet.serves)
    fleet.box.run("kill", "-STOP", str(daemon))
    wait_until("another daemon that serves", lambda: fleet.recovered(daemon))
    log = fleet.box.run("journalctl", "--unit", AGENT, "--output", "cat")
    assert "Watchdog timeout (limit 10s)!" in log


@pytest.mark.e2e
def test_a_killed_control_plane_comes_back(fleet: Fleet) -> None:
    server = fleet.main_pid(SERVER)
    fleet.box.run("kill", "-9", str(server))
    wait_until("another server", lambda: fleet.restarted(server, SERVER))
    wait_until("the server", lambda: fleet.box.property(SERVER, "SubState") == "running")
    wait_until("the box being connected", lambda: fleet.status().get("connected"))


@pytest.mark.e2e
def test_a_rebooted_box_serves_as_before(fleet: Fleet) -> None:
    device = fleet.status()["device_id"]
    fleet.box.reboot()
    wait_until("serving after the boot", fleet.serves)
    assert fleet.status()["device_id"] == device
    wait_until("the box being connected", lambda: fleet.status().get("connected"))


@pytest.mark.e2e
def test_an_upgrade_keeps_the_state_and_installing_again_changes_nothing(
    fleet: Fleet, packages: dict[str, Path], tmp_path: Path
) -> None:
    device = fleet.status()["device_id"]
    tree = tmp_path / "newer"
    subprocess.run(["dpkg-deb", "-R", packages["agent"], tree], check=True, timeout=120)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace("\nVersion: ", "\nVersion: 1:"))
    newer = tmp_path / "newer.deb"
    subprocess.run(["dpkg-deb", "-Znone", "-b", tree, newer], check=True, timeout=300)
    fleet.install_agent(newer, "--model-memory", "64MiB", token="not read any more")
    wait_until("serving after the upgrade", fleet.serves)
    assert fleet.status()["device_id"] == device
    version = fleet.box.run("dpkg-query", "-W", "-f", "${Version}", "flotilla-agent")
    assert version.startswith("1:")
    config = json.loads((fleet.box.root / "var/lib/flotilla/config.json").read_text())
    assert config["model_memory_bytes"] == 64 * MIB


@pytest.mark.e2e
def test_purging_leaves_nothing(packages: dict[str, Path], tmp_path: Path) -> None:
    fleet = new_fleet(tmp_path)
    with fleet.box.booted():
        before = _files(fleet.box)
        fleet.start_server(packages["server"])
        with pytest.raises(BoxError, match="token create"):
            fleet.install_agent(packages["agent"], "--wait", "30", token=_spoilt(fleet))
        assert fleet.box.property(AGENT, "Result") == "exit-code"
        assert fleet.box.property(AGENT, "ExecMainStatus") == "78"
        fleet.install_agent(packages["agent"])
        fleet.box.run("apt-get", "remove", "-y", "-q", "flotilla-agent")
        assert (fleet.box.root / "var/lib/flotilla/config.json").exists()
        fleet.box.run("apt-get", "purge", "-y", "-q", "flotilla-agent", "flotilla-server")
        assert _files(fleet.box) - before == set()
        assert "flotilla" not in fleet.box.run("cat", "/etc/passwd", "/etc/group", "/etc/shadow")
        units = fleet.box.run("systemctl", "list-unit-files", "flotilla*", check=False)
        assert "0 unit files" in units


def _spoilt(fleet: Fleet) -> str:
    """Return a join token that has been used."""
    created = fleet.cli("token", "create", "--uses", "1")
    fleet.cli("token", "revoke", created["token"]["id"], "--yes")
    return str(created["secret"])


def _files(box: DebianBox) -> set[str]:
    found = box.run("find", "/", "-xdev").splitlines()
    return {path for path in found if not f"{path}/".startswith(NOT_OURS)}
