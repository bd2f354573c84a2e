"""A ModelService in this process: real gRPC and TLS, the store a dictionary.

It keeps the rules of the real one by the same functions (artifact.trust.repository).
"""

# ruff: noqa: N802 - the methods have the names of their RPCs

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import grpc
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from flotilla.v1 import fleet_pb2, fleet_pb2_grpc, model_pb2, model_pb2_grpc
from tuf.api.metadata import Root

from artifact.errors import ArtifactError
from artifact.trust.keys import encode_public_key, generate_online_key, load_online_key
from artifact.trust.metadata import Roles, file_name, parse, version_of
from artifact.trust.repository import OnlineSigners, accept_release, initialise
from artifact.trust.update import Update, accept_update


class FakeModelService(model_pb2_grpc.ModelServiceServicer):
    def __init__(self) -> None:
        self.online = OnlineSigners(
            load_online_key(generate_online_key()), load_online_key(generate_online_key())
        )
        self.following = OnlineSigners(
            load_online_key(generate_online_key()), load_online_key(generate_online_key())
        )
        self.roles: dict[str, bytes] = {}
        self.metadata: dict[str, bytes] = {}
        self.chunks: dict[bytes, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.calls: list[str] = []
        # Release by name of the devices that run one.
        self.running: dict[str, str] = {}
        self.running: dict[str, str] = {}
        self.before_publishing: Callable[[], None] = lambda: None

    def keep(self, changed: Roles) -> None:
        self.roles.update(changed)
        self.metadata.update({file_name(role, data): data for role, data in changed.items()})

    def GetTrust(self, request: Any, context: Any) -> model_pb2.GetTrustResponse:
        return model_pb2.GetTrustResponse(
            snapshot_key=encode_public_key(self.online.snapshot.public_key),
            timestamp_key=encode_public_key(self.online.timestamp.public_key),
            root_version=1 if self.roles else 0,
            next_snapshot_key=encode_public_key(self.following.snapshot.public_key),
            next_timestamp_key=encode_public_key(self.following.timestamp.public_key),
        )

    def UpdateTrust(self, request: Any, context: Any) -> model_pb2.UpdateTrustResponse:
        self.calls.append("UpdateTrust")
        update = Update(request.root or None, request.targets or None, dict(request.delegated))
        with refusing(context):
            online = self._named_by(request.root or self.roles["root"])
            self.keep(accept_update(self.roles, update, online, now=datetime.now(UTC)))
            self.online = online
        return model_pb2.UpdateTrustResponse(root_version=version_of("root", self.roles["root"]))

    def _named_by(self, root: bytes) -> OnlineSigners:
        named = parse(Root, root, "root").signed.roles
        return OnlineSigners(
            *(
                getattr(held, role)
                for role in ("snapshot", "timestamp")
                for held in (self.online, self.following)
                if [getattr(held, role).public_key.keyid] == named[role].keyids
            )
        )

    def InitializeTrust(self, request: Any, context: Any) -> model_pb2.InitializeTrustResponse:
        with refusing(context):
            self.keep(
                initialise(
                    request.root,
                    request.targets,
                    dict(request.delegated),
                    self.online,
                    now=datetime.now(UTC),
                )
            )
        return model_pb2.InitializeTrustResponse()

    def GetMetadata(self, request: Any, context: Any) -> model_pb2.GetMetadataResponse:
        if request.name not in self.metadata:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no metadata {request.name}")
        return model_pb2.GetMetadataResponse(data=self.metadata[request.name])

    def MissingChunks(self, request: Any, context: Any) -> model_pb2.MissingChunksResponse:
        missing = [digest for digest in request.digests if digest not in self.chunks]
        return model_pb2.MissingChunksResponse(digests=missing)

    def UploadChunks(self, request_iterator: Any, context: Any) -> model_pb2.UploadChunksResponse:
        self.calls.append("UploadChunks")
        for request in request_iterator:
            self.chunks[hashlib.sha256(request.data).digest()] = request.data
        return model_pb2.UploadChunksResponse()

    def GetRelease(self, request: Any, context: Any) -> model_pb2.GetReleaseResponse:
        if request.reference not in self.manifests:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no release {request.reference}")
        return model_pb2.GetReleaseResponse(manifest=self.manifests[request.reference])

    def PublishRelease(self, request: Any, context: Any) -> model_pb2.PublishReleaseResponse:
        self.calls.append("PublishRelease")
        self.before_publishing()
        with refusing(context):
            accepted = accept_release(
                self.roles, request.targets, request.manifest, self.online, now=datetime.now(UTC)
            )
            self.keep(accepted.changed)
            self.manifests[accepted.release.reference] = request.manifest
        return model_pb2.PublishReleaseResponse()


class FakeFleetService(fleet_pb2_grpc.FleetServiceServicer):
    """Devices by name, each with the release that it runs."""

    def __init__(self, service: FakeModelService) -> None:
        self._service = service

    def ListDevices(self, request: Any, context: Any) -> fleet_pb2.ListDevicesResponse:
        return fleet_pb2.ListDevicesResponse(
            devices=[
                fleet_pb2.Device(name=name, current_release=release)
                for name, release in self._service.running.items()
            ]
        )


@contextmanager
def refusing(context: Any) -> Iterator[None]:
    try:
        yield
    except ArtifactError as error:
        context.set_trailing_metadata((("flotilla-advice", error.advice),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))


@contextmanager
def serving(service: FakeModelService, context_file: Path) -> Iterator[FakeModelService]:
    """Serve on a free port of localhost, and write the client's context file."""
    key, certificate = self_signed()
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        model_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
        fleet_pb2_grpc.add_FleetServiceServicer_to_server(FakeFleetService(service), server)
        port = server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials(((key, certificate),))
        )
        context = {"server": f"127.0.0.1:{port}", "token": "t", "ca_pem": certificate.decode()}
        context_file.write_bytes(msgspec.json.encode(context))
        context_file.chmod(0o600)
        server.start()
        try:
            yield service
        finally:
            server.stop(None).wait()


def self_signed() -> tuple[bytes, bytes]:
    """Key and certificate (PEM) of 127.0.0.1, its own CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, certificate.public_bytes(Encoding.PEM)
