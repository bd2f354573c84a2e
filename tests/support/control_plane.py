"""A control plane on loopback, with real TLS, and the operators, publishers and boxes around it."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flotilla.v1 import (
    access_pb2,
    access_pb2_grpc,
    device_pb2,
    device_pb2_grpc,
    enrollment_pb2,
    enrollment_pb2_grpc,
    fleet_pb2,
    fleet_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)

from artifact.chunks import encode_index, index_file, read_chunks
from artifact.join_token import decode_join_token
from artifact.manifest import Component, File, ModelVersion, Release, Task, Variant, encode_release
from artifact.trust.image import (
    OnlineKeys,
    add_release,
    initial_publisher,
    initial_root,
    initial_targets,
)
from artifact.trust.keys import decode_public_key, generate_key
from controlplane.config import Address, Config
from controlplane.server.data_directory import Endpoints
from controlplane.server.running import running

LOOPBACK = Address("127.0.0.1", 0)
HOUR = 3600.0
# Only a failure takes this long.
PATIENCE_SECONDS = 15.0


def request_id() -> str:
    return uuid.uuid4().hex


@dataclass
class Clock:
    """The time, which a test may move."""

    ahead: timedelta = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass
class Box:
    """A device as an agent would be: a key, a certificate, and what they open."""

    name: str
    plane: "Plane"
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    device_id: str = ""
    certificate_pem: bytes = b""

    def csr(self) -> bytes:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ignored")])
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def channel(self) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(
            self.plane.ca_pem, self.key_pem, self.certificate_pem
        )
        return self.plane.keep(
            grpc.aio.secure_channel(str(self.plane.endpoints.device), credentials)
        )

    @property
    def stub(self) -> Any:
        return device_pb2_grpc.DeviceServiceStub(self.channel())

    async def fetch(self, digests: list[bytes], offset: int = 0) -> list[bytes]:
        """The raw messages of FetchChunks."""
        call = self.channel().unary_stream(
            "/flotilla.v1.DeviceService/FetchChunks",
            request_serializer=device_pb2.FetchChunksRequest.SerializeToString,
            response_deserializer=None,
        )
        request = device_pb2.FetchChunksRequest(digests=digests, offset=offset)
        return [message async for message in call(request, timeout=20)]

    async def connect(self, boot_id: str = "boot-1", **hello: Any) -> "Life":
        """A stream, greeted; its first answer (the settings) is taken."""
        call = self.stub.Connect()
        await call.write(
            device_pb2.ConnectRequest(hello=device_pb2.Hello(boot_id=boot_id, **hello))
        )
        life = Life(self, call)
        assert (await life.read()).HasField("settings")
        return life

    def sign(self, receipt: device_pb2.Receipt) -> device_pb2.SignedReceipt:
        data = receipt.SerializeToString()
        return device_pb2.SignedReceipt(
            receipt=data, signature=self.key.sign(data, ec.ECDSA(hashes.SHA256()))
        )


@dataclass
class Life:
    """One connected life of a box."""

    box: Box
    call: Any

    async def send(self, **message: Any) -> None:
        await self.call.write(device_pb2.ConnectRequest(**message))

    async def read(self) -> device_pb2.ConnectResponse:
        """AioRpcError when the server ends the stream."""
        answer = await asyncio.wait_for(self.call.read(), PATIENCE_SECONDS)
        assert isinstance(answer, device_pb2.ConnectResponse), "the stream ended"
        return answer

    async def read_assignment(self) -> device_pb2.Assignment:
        while True:
            answer = await self.read()
            if answer.HasField("assignment"):
                return answer.assignment

    async def read_ack(self) -> device_pb2.Ack:
        while True:
            answer = await self.read()
            if answer.HasField("ack"):
                return answer.ack

    async def end(self) -> None:
        await self.call.done_writing()
        while await self.call.read() is not grpc.aio.EOF:
            pass


class Publisher:
    """The offline side: root, targets and publisher keys, and releases made of real bytes."""

    def __init__(self, plane: "Plane", names: tuple[str, ...] = ("acme",)) -> None:
        self.plane = plane
        self.root, self.targets = generate_key(), generate_key()
        self.keys = {name: generate_key() for name in names}
        self.current: dict[str, bytes] = {}

    async def initialise(self) -> None:
        stub = self.plane.model()
        trust = await stub.GetTrust(model_pb2.GetTrustRequest())
        online = OnlineKeys(
            decode_public_key(trust.snapshot_key), decode_public_key(trust.timestamp_key)
        )
        now = self.plane.clock()
        self.current = {
            name: initial_publisher(signer, now=now) for name, signer in self.keys.items()
        }
        await stub.InitializeTrust(
            model_pb2.InitializeTrustRequest(
                request_id=request_id(),
                root=initial_root(
                    [self.root],
                    threshold=1,
                    targets_key=self.targets.public_key,
                    online=online,
                    now=now,
                ),
                targets=initial_targets(
                    self.targets,
                    {name: signer.public_key for name, signer in self.keys.items()},
                    now=now,
                ),
                delegated=self.current,
            )
        )

    def make_file(self, path: Path, content: bytes) -> tuple[File, list[bytes]]:
        """A manifest's file, and the chunks (its index among them) that hold it."""
        path.write_bytes(content)
        index = index_file(path)
        encoded = encode_index(index)
        digest = hashes.Hash(hashes.SHA256())
        digest.update(encoded)
        file = File(
            name="model.gguf",
            size=index.size,
            sha256=index.sha256.hex(),
            index=digest.finalize().hex(),
        )
        return file, [encoded, *(data for _, data in read_chunks(path, index))]

    def manifest(
        self, file: File, *, name: str = "acme/chat", version: str = "1.0.0", counter: int = 1
    ) -> bytes:
        variant = Variant(
            name="q8",
            runtime="llama_cpp",
            format="gguf",
            quantization="q8_0",
            files=(file,),
            memory_bytes=1 << 20,
        )
        model = ModelVersion(
            name="acme/tiny", version="1", task=Task.TEXT_GENERATION, variants=(variant,)
        )
        return encode_release(
            Release(
                schema=1,
                name=name,
                version=version,
                counter=counter,
                components=(Component(slot="chat", model=model),),
            )
        )

    async def upload(self, chunks: list[bytes]) -> model_pb2.UploadChunksResponse:
        messages = [model_pb2.UploadChunksRequest(data=data) for data in chunks]
        answer: model_pb2.UploadChunksResponse = await self.plane.model().UploadChunks(
            iter(messages)
        )
        return answer

    def sign(self, manifest: bytes, publisher: str = "acme", signer: Any = None) -> bytes:
        return add_release(
            self.current[publisher],
            manifest,
            signer or self.keys[publisher],
            now=self.plane.clock(),
        )

    async def publish(self, manifest: bytes, publisher: str = "acme") -> model_pb2.Release:
        targets = self.sign(manifest, publisher)
        answer = await self.plane.model().PublishRelease(
            model_pb2.PublishReleaseRequest(
                request_id=request_id(), manifest=manifest, targets=targets
            )
        )
        self.current[publisher] = targets
        release: model_pb2.Release = answer.release
        return release


class Plane:
    """A running control plane."""

    def __init__(self, config: Config, endpoints: Endpoints, clock: Clock) -> None:
        self.config = config
        self.endpoints = endpoints
        self.clock = clock
        self._channels: list[grpc.aio.Channel] = []

    @property
    def admin_token(self) -> str:
        return str(self._context()["token"])

    @property
    def ca_pem(self) -> bytes:
        return str(self._context()["ca_pem"]).encode()

    def _context(self) -> Any:
        return json.loads((self.config.data_dir / "admin.json").read_text())

    def keep(self, channel: grpc.aio.Channel) -> grpc.aio.Channel:
        self._channels.append(channel)
        return channel

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    def channel(self, token: str | None = "") -> grpc.aio.Channel:
        """To the public port: with the admin's token, another, or (None) with none."""
        credentials = grpc.ssl_channel_credentials(self.ca_pem)
        if token is not None:
            credentials = grpc.composite_channel_credentials(
                credentials, grpc.access_token_call_credentials(token or self.admin_token)
            )
        return self.keep(grpc.aio.secure_channel(str(self.endpoints.public), credentials))

    def fleet(self, token: str | None = "") -> Any:
        return fleet_pb2_grpc.FleetServiceStub(self.channel(token))

    def model(self, token: str | None = "") -> Any:
        return model_pb2_grpc.ModelServiceStub(self.channel(token))

    def access(self, token: str | None = "") -> Any:
        return access_pb2_grpc.AccessServiceStub(self.channel(token))

    def enrollment(self) -> Any:
        return enrollment_pb2_grpc.EnrollmentServiceStub(self.channel(None))

    async def api_token(self, role: str) -> str:
        answer = await self.access().CreateApiToken(
            access_pb2.CreateApiTokenRequest(request_id=request_id(), name=role, role=role)
        )
        return str(answer.secret)

    async def join_token(
        self, uses: int = 1, lifetime_seconds: float = HOUR, **labels: str
    ) -> tuple[str, str]:
        """A join token's id, and the secret within what was printed."""
        answer = await self.fleet().CreateJoinToken(
            fleet_pb2.CreateJoinTokenRequest(
                request_id=request_id(),
                uses=uses,
                lifetime_seconds=lifetime_seconds,
                labels=labels,
            )
        )
        return answer.token.id, decode_join_token(answer.secret).secret

    async def enroll(self, name: str, secret: str | None = None, **labels: str) -> Box:
        if secret is None:
            _, secret = await self.join_token()
        box = Box(name, self)
        answer = await self.enrollment().Enroll(
            enrollment_pb2.EnrollRequest(token=secret, csr_pem=box.csr(), name=name, labels=labels)
        )
        box.device_id = answer.device_id
        box.certificate_pem = answer.certificate_pem
        return box


@contextlib.asynccontextmanager
async def running_plane(
    data_dir: Path, clock: Callable[[], datetime] | None = None, **changes: Any
) -> AsyncIterator[Plane]:
    """A control plane on free loopback ports, over this data directory."""
    ports = {"public": LOOPBACK, "device": LOOPBACK, "http": LOOPBACK}
    config = Config(
        data_dir=data_dir,
        **{"shutdown_grace_seconds": 0.2, "telemetry_window_seconds": 2.0, **ports, **changes},
    )
    time = clock or Clock()
    async with running(config, time) as endpoints:
        plane = Plane(config, endpoints, time)  # type: ignore[arg-type]
        try:
            yield plane
        finally:
            await plane.close()
