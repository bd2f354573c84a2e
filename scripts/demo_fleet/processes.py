"""The control plane and agents as separate processes, driven only by their commands."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_SECONDS = 60.0
STOP_SECONDS = 20.0
# For gates and reports that need telemetry within seconds.
FAST_TELEMETRY = ("--telemetry-window", "2")


class FleetError(Exception):
    """A process or a command of the fleet failed."""


def free_port() -> int:
    """Return a free loopback port; processes keep it across restarts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(what: str, ready: Callable[[], Any], seconds: float = START_SECONDS) -> Any:
    """Poll until ``ready`` returns a true value; FleetError after the timeout."""
    deadline = time.monotonic() + seconds
    while True:
        result = ready()
        if result:
            return result
        if time.monotonic() > deadline:
            raise FleetError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.05)


def command(name: str) -> str:
    """Return the path of an installed command, beside the running interpreter."""
    return str(Path(sys.executable).parent / name)


@dataclass
class Process:
    """A long-running process whose output goes to a log file."""

    arguments: list[str]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
            )

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def kill(self) -> None:
        """Send SIGKILL, as in a crash or a power cut."""
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait()

    def stop(self) -> None:
        """Send SIGTERM, then SIGKILL if the process does not exit in time."""
        if self.popen is None or not self.running:
            return
        self.popen.send_signal(signal.SIGTERM)
        try:
            self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise FleetError(f"{self.arguments[0]} ignored SIGTERM; see {self.log}") from None

    def check_running(self) -> None:
        if not self.running:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise FleetError(f"{' '.join(self.arguments[:2])} ended early:\n{tail}")


class ControlPlane:
    """`flotilla serve` on loopback, operated only by the CLI."""

    def __init__(self, directory: Path, *options: str) -> None:
        """``options`` are more arguments of `flotilla serve`."""
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.public, self.device, self.http = (f"127.0.0.1:{free_port()}" for _ in range(3))
        self.process = Process(
            [
                *(command("flotilla"), "serve", "--data-dir", str(directory)),
                *("--public", self.public, "--device", self.device, "--http", self.http),
                *options,
            ],
            directory.parent / "server.log",
        )
        self.passphrase = {"FLOTILLA_KEY_PASSPHRASE": "only for this demonstration"}

    def start(self) -> None:
        self.process.start()
        wait_until("the control plane's health", self._healthy)

    def _healthy(self) -> bool:
        self.process.check_running()
        try:
            with urllib.request.urlopen(f"http://{self.http}/healthz", timeout=2) as answer:
                return answer.status == 200 and (self.directory / "admin.json").exists()
        except OSError:
            return False

    def cli(self, *arguments: str, check: bool = True) -> Any:
        """Run an operator command and return its parsed --json answer."""
        result = subprocess.run(
            [command("flotilla"), *self.globals(), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, **self.passphrase},
            check=False,
        )
        if check and result.returncode != 0:
            raise FleetError(
                f"flotilla {' '.join(arguments)} exited with {result.returncode}:\n"
                f"{result.stderr[-2000:]}"
            )
        return json.loads(result.stdout) if result.stdout.strip() else {}

    def background(self, log: Path, *arguments: str) -> subprocess.Popen[str]:
        """Start an operator command; its --json answer appears on stdout."""
        with log.open("ab") as errors:
            return subprocess.Popen(
                [command("flotilla"), *self.globals(), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **self.passphrase},
            )

    def globals(self) -> list[str]:
        return ["--context", str(self.directory / "admin.json"), "--json"]

    def stop(self) -> None:
        self.process.stop()


class Box:
    """An agent with its own data directory and gateway."""

    def __init__(self, root: Path, name: str, model_memory: str, labels: dict[str, str]) -> None:
        self.name = name
        self.model_memory = model_memory
        self.labels = labels
        self.directory = root / name
        self.gateway = f"127.0.0.1:{free_port()}"
        self.process = Process(
            [command("flotilla-agent"), "run", "--data-dir", str(self.directory)],
            root / f"{name}.log",
        )

    def enroll(self, server: str, token: str) -> None:
        labels = [
            part for key, value in self.labels.items() for part in ("--label", f"{key}={value}")
        ]
        result = subprocess.run(
            [
                *(command("flotilla-agent"), "enroll", "--server", server, "--token", token),
                *("--name", self.name, "--data-dir", str(self.directory)),
                *("--model-memory", self.model_memory, "--gateway", self.gateway, *labels),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise FleetError(f"{self.name} could not enrol:\n{result.stderr[-2000:]}")

    def start(self) -> None:
        self.process.start()
        wait_until(f"{self.name}'s gateway", self._answers)

    def _answers(self) -> bool:
        self.process.check_running()
        try:
            with urllib.request.urlopen(f"http://{self.gateway}/healthz", timeout=2):
                return True
        except OSError:
            return False

    def stop(self) -> None:
        self.process.stop()
