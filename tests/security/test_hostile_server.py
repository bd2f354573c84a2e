"""A box before a control plane that an attacker has taken over.

The server has a TLS certificate that the box trusts, and answers with arbitrary bytes. Every answer
is bounded in size and time, fails with a typed error, and leaves the running release alone. Attacks
with signed data: test_trust_attacks.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from asking import signed
from flotilla.v1 import device_pb2 as wire

from agent.backoff import Backoff
from agent.config import DataDir
from agent.errors import DownloadError, SourceUnavailableError
from agent.identity.credentials import Credentials
from agent.identity.keys import Identity, make_or_load_key, signing_request
from agent.link import connection as connections
from agent.link.connection import Connection
from agent.link.stream import ControlPlaneStream
from agent.storage.download import Downloader
from agent.storage.file_store import FileStore
from agent.storage.transfer import TransferLimits, TransferProgress
from agent.telemetry import TelemetryQueue
from artifact.manifest import File
from tests.agent.box import Life, World, eventually
from tests.agent.chunk_server import ChunkServer, random_file
from tests.agent.tls import Authority

MIB = 1 << 20
PATIENCE_SECONDS = 30
# Twice the message limit of the agent.
TOO_LARGE = bytes(8 * MIB)

METHODS = ("Connect", "FetchChunks", "FetchMetadata", "GetDelta", "RenewCertificate")

Answer = Callable[[], AsyncIterator[bytes]]
PLAIN, GZIP = grpc.Compression.NoCompression, grpc.Compression.Gzip


class HostileServer:
    """Answers every call of a method with the messages of ``answers[method]``."""

    def __init__(self) -> None:
        self.authority = Authority()
        self.answers: dict[str, Answer] = {}
        self.compression = PLAIN
        self.calls = 0
        # Set when a call ends, on either side.
        self.over = asyncio.Event()
        self.port = 0
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        handlers: dict[str, Any] = {
            method: grpc.stream_stream_rpc_method_handler(self._handler(method))
            for method in METHODS
        }
        self._server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
        handler = grpc.method_handlers_generic_handler("flotilla.v1.DeviceService", handlers)
        self._server.add_generic_rpc_handlers((handler,))
        credentials = self.authority.server_credentials("127.0.0.1", mutual=True)
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)

    def _handler(self, method: str) -> Any:
        async def answer(_: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            self.calls += 1
            context.set_compression(self.compression)
            try:
                async for message in self.answers[method]():
                    yield message
            finally:
                self.over.set()

        return answer


@pytest.fixture
async def server() -> AsyncIterator[HostileServer]:
    server = HostileServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def hostile(
    server: HostileServer, tmp_path: Path
) -> AsyncIterator[tuple[HostileServer, Connection]]:
    """Run the server and a box's connection to it."""
    connection = Connection(f"127.0.0.1:{server.port}", identity_of(server, tmp_path / "box"))
    yield server, connection
    await connection.close()


def identity_of(server: HostileServer, root: Path) -> Credentials:
    root.mkdir(exist_ok=True)
    key = make_or_load_key(DataDir(root))
    certificate = server.authority.device(signing_request(key, "box-1"))
    return Identity(key, certificate, server.authority.pem).credentials


async def forever(message: bytes, seconds: float = 0) -> AsyncIterator[bytes]:
    while True:
        yield message
        await asyncio.sleep(seconds)


async def once(message: bytes) -> AsyncIterator[bytes]:
    yield message


async def never() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


def a_file(root: Path) -> File:
    return ChunkServer().add(random_file(root / "model", MIB))


async def fetch(connection: Connection, store: FileStore, file: File) -> None:
    """Fetch with a real box's limits and shorter timeouts."""
    limits = TransferLimits(stalled_seconds=1, least_bytes_per_second=1000, window_seconds=0.3)
    downloader = Downloader(store, connection, limits=limits, backoff=lambda: Backoff(0.05, 0.05))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await downloader.fetch([file], TransferProgress(), lambda: None)


@pytest.mark.parametrize(
    ("answer", "compression", "reasons"),
    [
        (lambda: forever(bytes(MIB)), PLAIN, {"download_corrupt", "download_too_slow"}),
        (lambda: forever(b"x", 0.05), PLAIN, {"download_too_slow"}),
        (lambda: forever(b""), PLAIN, {"download_too_slow"}),
        (never, PLAIN, {"download_too_slow"}),
        (lambda: once(TOO_LARGE), PLAIN, {"server_unreachable"}),
        (lambda: once(TOO_LARGE), GZIP, {"server_unreachable"}),
    ],
    ids=["endless", "trickle", "nothing again and again", "silence", "too large", "bomb"],
)
async def test_a_download_is_ended_whatever_comes(
    hostile: tuple[HostileServer, Connection],
    tmp_path: Path,
    answer: Answer,
    compression: grpc.Compression,
    reasons: set[str],
) -> None:
    server, connection = hostile
    server.answers["FetchChunks"], server.compression = answer, compression
    store, file = FileStore(tmp_path / "store"), a_file(tmp_path)
    with pytest.raises(DownloadError) as ended:
        await fetch(connection, store, file)
    assert ended.value.reason in reasons
    assert ended.value.advice
    assert not store.has(file)
    # The call was ended too, so no more bytes arrive.
    await asyncio.wait_for(server.over.wait(), PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("answer", "compression"),
    [
        (lambda: once(TOO_LARGE), PLAIN),
        (lambda: once(TOO_LARGE), GZIP),
        (lambda: once(b"\xff\xff\xff"), PLAIN),
        (lambda: forever(b""), PLAIN),
        (never, PLAIN),
    ],
    ids=["too large", "bomb", "garbage", "endless", "silence"],
)
async def test_metadata_is_given_up_whatever_comes(
    hostile: tuple[HostileServer, Connection],
    answer: Answer,
    compression: grpc.Compression,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "METADATA_SECONDS", 1)
    server, connection = hostile
    server.answers["FetchMetadata"], server.compression = answer, compression
    with pytest.raises(SourceUnavailableError):
        await asyncio.wait_for(connection.metadata("timestamp.json"), PATIENCE_SECONDS)


async def test_answers_that_cannot_be_read_are_given_up(
    hostile: tuple[HostileServer, Connection], tmp_path: Path
) -> None:
    server, connection = hostile
    garbage = {method: lambda: once(b"\xff\xff") for method in ("GetDelta", "RenewCertificate")}
    server.answers |= garbage
    file = a_file(tmp_path)
    with pytest.raises(SourceUnavailableError, match="cannot be parsed"):
        await connection.delta([file], file)
    with pytest.raises(SourceUnavailableError, match="cannot be parsed"):
        await connection.renew(b"a request")


@asynccontextmanager
async def linked(
    world: World, server: HostileServer
) -> AsyncIterator[tuple[Life, ControlPlaneStream]]:
    identity = identity_of(server, world.root)
    connection = Connection(f"127.0.0.1:{server.port}", identity)
    telemetry = TelemetryQueue(world.root / "telemetry.db", "boot-1")
    async with Life(world) as life:
        link = ControlPlaneStream(
            connection,
            life.engine,
            life.journal,
            telemetry,
            facts=world.facts,
            identity=lambda: identity,
            sign=partial(signed, DataDir(world.root)),
            agent_version="1",
            backoff=Backoff(0.02, 0.05),
        )
        running = asyncio.create_task(link.run())
        try:
            yield life, link
            assert not running.done()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await connection.close()
            telemetry.close()


def encoded(**message: Any) -> bytes:
    return wire.ConnectResponse(**message).SerializeToString()


ODD = wire.Settings(status_interval_seconds=float("nan"), telemetry_window_seconds=-1)
BEYOND = wire.Ack(receipt_generations=[2**63 - 1], telemetry_sequence=2**63 - 1)


@pytest.mark.parametrize(
    ("message", "compression", "problem"),
    [
        (TOO_LARGE, PLAIN, "larger than max"),
        (TOO_LARGE, GZIP, "larger than max"),
        (b"\xff\xff\xff", PLAIN, "cannot be parsed"),
        (encoded(settings=ODD), PLAIN, ""),
        (encoded(ack=BEYOND), PLAIN, ""),
        (b"\xfa\x3f\x03new", PLAIN, ""),
    ],
    ids=["too large", "bomb", "garbage", "odd settings", "odd acknowledgement", "unknown"],
)
async def test_a_stream_of_nonsense_breaks_at_most_itself(
    server: HostileServer,
    tmp_path: Path,
    message: bytes,
    compression: grpc.Compression,
    problem: str,
) -> None:
    """The box keeps serving and opens a broken stream again."""
    world = World(tmp_path)
    server.compression = compression
    sent = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal sent
        async for each in forever(message):
            sent += 1
            yield each

    server.answers["Connect"] = counted
    async with linked(world, server) as (life, link):
        if problem:
            await eventually(lambda: server.calls >= 3)
            await eventually(lambda: problem in link.problem)
        else:
            await eventually(lambda: link.connected)
            before = sent
            await eventually(lambda: sent >= before + 100)
            assert (link.connected, server.calls, link.problem) == (True, 1, "")
        assert life.engine.status().generation == 0
