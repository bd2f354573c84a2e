"""A real control plane in its own process, and the database behind it to fill as agents would."""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from model_service import FakeModelService, self_signed, serving
from operator_cli import Operator, document

from artifact.device_facts import DeviceFacts
from artifact.health import ReleaseHealth, SlotHealth
from artifact.manifest import (
    Component,
    File,
    ModelVersion,
    Release,
    Task,
    Variant,
    encode_release,
)
from artifact.sketch import Sketch
from artifact.window import Window
from controlplane.cli.command import cli
from controlplane.fleet import UpdateState
from controlplane.store import devices, receipts, releases, telemetry
from controlplane.store.database import Database, Transaction, embedded_url, open_database
from controlplane.store.devices import Device
from controlplane.store.receipts import CandidateRecord, DecisionRecord, ProbationCheck, Receipt
from controlplane.store.releases import StoredRelease

RELEASE = "acme/assistant@1.0.0"
NOW = datetime.now(UTC)


@pytest.fixture(scope="session")
def certificate() -> str:
    """A PEM certificate that no server of ours has."""
    return self_signed()[1].decode()


@dataclass
class Server:
    """``flotilla serve`` on loopback, and an operator's hands."""

    directory: Path
    ports: tuple[str, ...] = ("127.0.0.1:0",) * 3
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        public, device, http = self.ports
        with (self.directory.parent / "server.log").open("ab") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "controlplane", "serve"),
                    *("--data-dir", str(self.directory), "--public", public),
                    *("--device", device, "--http", http),
                ],
                stdout=output,
                stderr=output,
            )
        endpoints, known = self.directory / "endpoints.json", self.endpoints()
        deadline = time.monotonic() + 30
        while self.endpoints() == known or not (self.directory / "admin.json").exists():
            assert self.process.poll() is None, (self.directory.parent / "server.log").read_text()
            assert time.monotonic() < deadline, f"{endpoints} did not appear"
            time.sleep(0.02)

    def endpoints(self) -> tuple[int, int]:
        """When endpoints.json was written, and by which inode."""
        try:
            found = (self.directory / "endpoints.json").stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_mtime_ns, found.st_ino

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)

    def run(self, *arguments: str, context: Path | None = None) -> Result:
        path = context or self.directory / "admin.json"
        return CliRunner().invoke(cli, ["--context", str(path), *arguments])

    def json(self, *arguments: str) -> Any:
        """The one document that a command prints."""
        result = self.run("--json", *arguments)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def fill(self, act: Callable[[Transaction], Awaitable[None]]) -> None:
        """Change the database beside the running server."""

        async def change() -> None:
            database: Database = open_database(embedded_url(self.directory / "flotilla.db"))
            async with database.write() as tx:
                await act(tx)
            await database.close()

        asyncio.run(change())


def device(name: str, **labels: str) -> Device:
    return Device(
        id=f"id-{name}",
        name=name,
        labels=labels,
        enrolled_at=NOW,
        public_key=b"",
        certificate_serial=f"serial-{name}",
        certificate_expires_at=NOW + timedelta(days=7),
        hardware_class="abc",
        facts=DeviceFacts(cpu_model="Tiny CPU", cores=4, memory_bytes=4 << 30),
        last_seen_at=NOW,
        current_release=RELEASE,
        health=ReleaseHealth(
            RELEASE, (SlotHealth("chat", ready=True, worker_restarts=1, requests=9, errors=2),)
        ),
        health_at=NOW,
    )


FILE = File(name="q4.gguf", size=1 << 20, sha256="c" * 64, index="d" * 64)
MANIFEST = encode_release(
    Release(
        schema=1,
        name="acme/assistant",
        version="1.0.0",
        counter=1,
        description="for tests",
        components=(
            Component(
                slot="chat",
                model=ModelVersion(
                    name="acme/tiny",
                    version="1.0.0",
                    task=Task.TEXT_GENERATION,
                    variants=(
                        Variant(
                            name="q4",
                            runtime="llama_cpp",
                            format="gguf",
                            quantization="q4_k_m",
                            files=(FILE,),
                            memory_bytes=4 << 20,
                        ),
                    ),
                ),
            ),
        ),
    )
)

RECEIPT = Receipt(
    generation=1,
    release=RELEASE,
    outcome=UpdateState.COMMITTED,
    reason="",
    detail="",
    bytes_downloaded=1 << 20,
    switch_seconds=0.012,
    decisions=(
        DecisionRecord(
            slot="chat",
            model="acme/tiny@1.0.0",
            chosen_variant="q4",
            objective="tokens_per_second",
            reason="the fastest that fits",
            memory_budget_bytes=5 << 20,
            candidates=(
                CandidateRecord(
                    variant="q4",
                    runtime="llama_cpp",
                    quantization="q4_k_m",
                    bucket="chosen",
                    reason="measured 300 tokens/s",
                    measured_tokens_per_second=300.0,
                ),
                CandidateRecord(
                    variant="f16",
                    runtime="llama_cpp",
                    quantization="f16",
                    bucket="excluded",
                    reason="needs 9.0 MiB, budget 5.0 MiB",
                ),
            ),
        ),
    ),
    checks=(ProbationCheck("chat", "reads-english", "passed", "perplexity 11"),),
    finished_at=NOW,
    current_release=RELEASE,
    last_good_release="",
)

WINDOW = Window(
    sequence=1,
    started_at=NOW,
    duration_seconds=2.0,
    release=RELEASE,
    slot="chat",
    model_version="acme/tiny@1.0.0",
    variant="q4",
    runtime="llama_cpp",
    requests=3,
    generated_tokens=300,
    decode_seconds=1.0,
    ttft_seconds=Sketch.of([0.01] * 3),
    latency_seconds=Sketch.of([0.3] * 3),
    peak_memory_bytes=4 << 20,
)


async def fill_fleet(tx: Transaction) -> None:
    for one in (device("box-1", site="lab"), device("box-2", site="lab", tier="canary")):
        await devices.add(tx, one)
    await devices.add(tx, device("elsewhere", site="field"))
    await releases.add(tx, StoredRelease("1", RELEASE, 1, MANIFEST, "a" * 64, NOW))
    await receipts.add(tx, "id-box-1", RECEIPT, signed=b"", signature=b"", now=NOW)
    await telemetry.add(tx, "id-box-1", "boot", [WINDOW])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Three boxes, none of them connected; one has a receipt and telemetry."""
    server = Server(tmp_path_factory.mktemp("plane") / "data")
    server.start()
    try:
        server.fill(fill_fleet)
        yield server
    finally:
        server.stop()


@pytest.fixture
def context(tmp_path: Path) -> Path:
    return tmp_path / "context.json"


@pytest.fixture
def service(context: Path) -> Iterator[FakeModelService]:
    with serving(FakeModelService(), context) as service:
        yield service


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def operator(context: Path, folder: Path) -> Operator:
    return Operator(context, folder)


@pytest.fixture(scope="session")
def first_founding(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, FakeModelService]:
    """One key folder and the server that it founded: making keys is slow on purpose."""
    directory = tmp_path_factory.mktemp("founding")
    operator = Operator(directory / "context.json", directory / "keys")
    with serving(FakeModelService(), operator.context) as service:
        document(operator.init(as_json=True))
    return operator.folder, service


@pytest.fixture
def founded(
    service: FakeModelService, operator: Operator, first_founding: tuple[Path, FakeModelService]
) -> FakeModelService:
    """A server as ``keys init`` leaves it, and a copy of the folder of its keys."""
    folder, first = first_founding
    shutil.copytree(folder, operator.folder)
    service.online = first.online
    service.keep(first.roles)
    return service
