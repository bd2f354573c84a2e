"""A full disk and a lost database are named in every answer, logged once, and survived."""

import asyncio
import contextlib
import hashlib
import logging
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from control_plane import Plane, Publisher, request_id, running_plane
from databases import fresh_postgres
from flotilla.v1 import access_pb2, device_pb2, fleet_pb2, model_pb2
from sqlalchemy import make_url

import controlplane.api.device_stream
import controlplane.server.readiness

Code = grpc.StatusCode
DEVICES = fleet_pb2.ListDevicesRequest()


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controlplane.api.device_stream, "FULL_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(controlplane.server.readiness, "FRESH_SECONDS", 0.0)


@pytest.fixture
def disk(tmp_path: Path, require: Callable[..., None]) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    require("mount", missing=None if mounted else "no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take the last byte: large pieces first, because the last free block matters."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    assert shutil.disk_usage(disk).free == 0
    return path


async def readyz(plane: Plane) -> tuple[int, str]:
    def get() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{plane.endpoints.http}/readyz") as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(get)


async def refused(call: Any) -> tuple[Code, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), str(caught.value.details())


def token_request() -> access_pb2.CreateApiTokenRequest:
    return access_pb2.CreateApiTokenRequest(request_id=request_id(), name="ci", role="viewer")


def states(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The changes of state that were logged."""
    return [
        record.getMessage().split(" ")[1].removeprefix("state=")
        for record in caplog.records
        if record.getMessage().startswith("storage_state")
    ]


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.exc_info]


async def assert_reads_and_streams_work(plane: Plane, box: Any) -> None:
    listed = (await plane.fleet().ListDevices(DEVICES)).devices
    assert box.name in [device.name for device in listed]
    life = await box.connect()
    assert (await life.read_assignment()).generation == 0
    await life.end()
    assert await box.fetch([box.chunk]) == [b"weights"]


async def assert_writes_are_refused(plane: Plane) -> None:
    async def chunks() -> AsyncIterator[model_pb2.UploadChunksRequest]:
        yield model_pb2.UploadChunksRequest(data=b"x" * 100_000)

    for call in (
        plane.access().CreateApiToken(token_request()),
        plane.model().UploadChunks(chunks()),
    ):
        code, details = await refused(call)
        assert code is Code.RESOURCE_EXHAUSTED
        assert details.startswith("disk_full: ")
    status, body = await readyz(plane)
    assert (status, body.partition(":")[0]) == (503, "disk_full")


async def test_a_full_disk_is_named_and_reads_and_streams_go_on(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data_dir = disk / "server"
    async with running_plane(data_dir) as plane:
        publisher = Publisher(plane)
        await publisher.initialise()
        box: Any = await plane.enroll("box-1")
        await publisher.upload([b"weights"])
        box.chunk = hashlib.sha256(b"weights").digest()
        waiting_box = await plane.enroll("box-2")
        life = await waiting_box.connect()
        filler = fill(disk)
        await assert_writes_are_refused(plane)
        await assert_reads_and_streams_work(plane, box)
        # Nothing is acknowledged until it is stored; the stream waits meanwhile.
        receipt = device_pb2.Receipt(generation=1, outcome=device_pb2.UPDATE_STATE_COMMITTED)
        await life.send(receipt=waiting_box.sign(receipt))
        waiting = asyncio.create_task(life.read_ack())
        await assert_reads_and_streams_work(plane, box)
        assert not waiting.done()
        filler.unlink()
        assert (await waiting).receipt_generations == [1]
        assert await readyz(plane) == (200, "ok\n")
    assert states(caplog) == ["disk_full", "ok"]
    assert tracebacks(caplog) == []


async def test_a_server_starts_on_a_full_disk_and_recovers(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data_dir = disk / "server"
    async with running_plane(data_dir) as plane:
        publisher = Publisher(plane)
        await publisher.initialise()
        box: Any = await plane.enroll("box-1")
        await publisher.upload([b"weights"])
        box.chunk = hashlib.sha256(b"weights").digest()
        fill(disk)
    # The disk is full up to the reserve, which another process takes once it is released.
    async with running_plane(data_dir) as plane:
        fill(disk)
        box.plane = publisher.plane = plane
        await assert_writes_are_refused(plane)
        await assert_reads_and_streams_work(plane, box)
        (disk / "filler").unlink()
        await plane.access().CreateApiToken(token_request())
        assert await readyz(plane) == (200, "ok\n")
    assert tracebacks(caplog) == []


@dataclass
class Proxy:
    """A TCP proxy before PostgreSQL, which a test can cut."""

    host: str
    port: int
    connections: set[asyncio.StreamWriter] = field(default_factory=set)
    server: asyncio.Server | None = None
    listening: int = 0

    async def open(self) -> None:
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", self.listening)
        self.listening = self.server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self.server is not None
        self.server.close()
        for writer in list(self.connections):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner = await asyncio.open_connection(self.host, self.port)
        pipes = [self._pipe(reader, inner[1]), self._pipe(inner[0], writer)]
        self.connections |= {writer, inner[1]}
        await asyncio.gather(*pipes, return_exceptions=True)
        self.connections -= {writer, inner[1]}

    @staticmethod
    async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()


async def test_a_lost_database_is_unavailable_and_logged_once(
    tmp_path: Path, require: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with fresh_postgres(require) as url:
        real = make_url(url)
        proxy = Proxy(real.host or "", real.port or 5432)
        await proxy.open()
        through = real.set(host="127.0.0.1", port=proxy.listening)
        async with running_plane(
            tmp_path / "server", database_url=through.render_as_string(hide_password=False)
        ) as plane:
            await plane.fleet().ListDevices(DEVICES)
            await proxy.cut()
            for call in (
                plane.fleet().ListDevices(DEVICES),
                plane.access().CreateApiToken(token_request()),
                plane.fleet().ListDevices(DEVICES),
            ):
                code, details = await refused(call)
                assert code is Code.UNAVAILABLE
                assert details.startswith("database_unavailable: ")
            status, body = await readyz(plane)
            assert (status, body.partition(":")[0]) == (503, "database_unavailable")
            await proxy.open()
            await plane.fleet().ListDevices(DEVICES)
            assert await readyz(plane) == (200, "ok\n")
        await proxy.cut()
    assert states(caplog) == ["database_unavailable", "ok"]
    assert tracebacks(caplog) == []
