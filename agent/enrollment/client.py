"""Enrolment: exchange of a join token for a device certificate (docs/adr/0004)."""

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from flotilla.v1 import enrollment_pb2, enrollment_pb2_grpc

from agent.config import (
    AgentConfig,
    DataDir,
    create_data_dir,
    data_dir_errors,
    load_config,
    save_config,
)
from agent.errors import EnrollmentError, IdentityError, ServerUnreachableError
from agent.identity.keys import (
    TrustBundle,
    check_certificate,
    check_server_issuer,
    check_server_name,
    check_trust_bundle,
    load_key,
    make_or_load_key,
    save_certificate,
    signing_request,
)
from agent.link import proxy
from agent.link.channels import answered, server_authenticated
from agent.link.problems import tls_problem
from agent.link.translate import (
    ADVICE_KEY,
    authorities_from_wire,
    facts_to_wire,
    refusal_text,
    trailing,
)
from agent.storage.atomic_file import write_file
from artifact.device_facts import DeviceFacts
from artifact.join_token import JoinToken, decode_join_token
from artifact.trust.statements import Authorities

TIMEOUT_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Application:
    """The owner's request to enrol a box."""

    server: str
    token: str
    name: str
    labels: dict[str, str]
    facts: DeviceFacts
    gateway: str
    model_memory_bytes: int
    disk_budget_bytes: int = 0
    metered: bool = False
    # The device id to keep, on recovery; empty for a new box.
    device_id: str = ""


async def enroll(data_dir: DataDir, application: Application) -> AgentConfig:
    """Make this box a device of the fleet; EnrollmentError, IdentityError or InvalidJoinTokenError.

    DataDirectoryError if its files cannot be written. If the answer to the request was lost, the
    server may have enrolled the box under its new key: the key is kept, so that the same command
    can run again. A refusal leaves no files.
    """
    if data_dir.config.exists():
        raise EnrollmentError(
            f"{data_dir.root} is the data directory of an enrolled agent",
            advice="Use another --data-dir, or retire the device and empty this one. If its "
            "certificate has expired, add --recover.",
        )
    # Before any network: a mistyped token must not look like a server that refuses it.
    token = decode_join_token(application.token)
    try:
        bundle, ca_pem = await _trust_bundle(application.server, token)
    except grpc.aio.AioRpcError as error:
        raise _refusal(error, application) from error
    with _new_key(data_dir) as key:
        request = signing_request(key, application.name)
        try:
            answer = await _enroll(application, token, request, ca_pem)
        except grpc.aio.AioRpcError as error:
            raise _refusal(error, application, key=data_dir.key) from error
    check_certificate(answer.certificate_pem, key, ca_pem)
    config = AgentConfig(
        device_id=answer.device_id,
        name=application.name,
        labels=application.labels,
        server=application.server,
        device_endpoint=answer.device_endpoint,
        gateway=application.gateway,
        model_memory_bytes=application.model_memory_bytes,
        disk_budget_bytes=application.disk_budget_bytes,
        metered=application.metered,
    )
    with data_dir_errors(data_dir):
        write_file(data_dir.ca, ca_pem)
        write_file(data_dir.image_root, bundle.image_root)
        write_file(data_dir.director_root, bundle.director_root)
        write_file(data_dir.certificate, answer.certificate_pem)
        # The configuration comes last: with it the box counts as enrolled.
        save_config(data_dir, config)
    return config


@contextlib.contextmanager
def _new_key(data_dir: DataDir) -> Iterator[ec.EllipticCurvePrivateKey]:
    """Yield the box's key; a key made now is deleted if the server refuses the box."""
    is_new_key, is_new_root = not data_dir.key.exists(), not data_dir.root.exists()
    create_data_dir(data_dir)
    try:
        with data_dir_errors(data_dir):
            key = make_or_load_key(data_dir)
        yield key
    except ServerUnreachableError:
        # The answer may have been lost after the server had stored this key: keep it.
        raise
    except EnrollmentError:
        if is_new_key:
            data_dir.key.unlink(missing_ok=True)
        if is_new_root:
            with contextlib.suppress(OSError):
                data_dir.root.rmdir()
        raise


async def recover(
    data_dir: DataDir, token: str, facts: DeviceFacts, *, server: str | None = None
) -> AgentConfig:
    """Replace a certificate that has expired or is lost, with the box's own key.

    ``token`` must be of the same fleet. A running daemon picks the certificate up from the disk.
    Raises what ``load_config`` and ``enroll`` raise.
    """
    config = load_config(data_dir)
    key = load_key(data_dir)
    application = Application(
        server=server or config.server,
        token=token,
        name=config.name,
        # The server keeps the device's labels; those of a recovery are ignored.
        labels={},
        facts=facts,
        gateway=config.gateway,
        model_memory_bytes=config.model_memory_bytes,
        device_id=config.device_id,
    )
    named = decode_join_token(token)
    try:
        bundle, ca_pem = await _trust_bundle(application.server, named)
        _check_same_fleet(data_dir, bundle)
        request = signing_request(key, config.name)
        answer = await _enroll(application, named, request, ca_pem)
    except grpc.aio.AioRpcError as error:
        raise _refusal(error, application) from error
    check_certificate(answer.certificate_pem, key, ca_pem)
    if answer.device_id != config.device_id:
        raise IdentityError(
            f"the server answered for device {answer.device_id!a}, this box is {config.device_id}",
            advice="Update the server, or enrol the box again into an empty --data-dir.",
        )
    config = msgspec.structs.replace(
        config, server=application.server, device_endpoint=answer.device_endpoint
    )
    with data_dir_errors(data_dir):
        save_certificate(data_dir, answer.certificate_pem, ca_pem)
        save_config(data_dir, config)
    return config


def _check_same_fleet(data_dir: DataDir, bundle: TrustBundle) -> None:
    """Raise IdentityError if the token's roots differ from those that the box trusts."""
    roots = (data_dir.image_root, bundle.image_root), (data_dir.director_root, bundle.director_root)
    for path, root in roots:
        if not path.exists() or path.read_bytes() != root:
            raise IdentityError(
                f"the token is from another fleet: its root differs from {path}",
                advice="Use a token of the fleet that the box is in, or enrol it into an empty "
                "--data-dir.",
            )


async def _trust_bundle(server: str, token: JoinToken) -> tuple[TrustBundle, bytes]:
    """Fetch the trust bundle and check it against the token's digests.

    Returns the bundle and the authorities to trust, PEM. No authority is known yet, so the first
    connection pins the server's own certificate. The bundle is trusted for its digests, and the
    certificate only because an authority of the bundle proves to be its issuer.
    """
    host, _, port = server.rpartition(":")
    host = host.strip("[]")
    leaf_pem = await _leaf(host, int(port))
    check_server_name(leaf_pem, host)
    async with server_authenticated(server, leaf_pem) as channel:
        stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
        request = enrollment_pb2.GetTrustBundleRequest()
        answer = await answered(stub.GetTrustBundle(request, timeout=TIMEOUT_SECONDS))
    authorities = Authorities(answer.ca_pem)
    if answer.HasField("authorities"):
        authorities = authorities_from_wire(answer.authorities)
    bundle = TrustBundle(authorities, answer.image_root, answer.director_root)
    ca_pem = check_trust_bundle(bundle, token)
    check_server_issuer(leaf_pem, ca_pem)
    return bundle, ca_pem


async def _leaf(host: str, port: int) -> bytes:
    try:
        # Blocking sockets: asyncio's TLS cannot start inside a tunnel opened by http.client.
        return await asyncio.to_thread(_fetch_leaf, host, port)
    except (OSError, ValueError) as error:
        raise ServerUnreachableError(
            f"there is no TLS server at {host}:{port}: {error}",
            advice="Check the address and that `flotilla serve` runs there; it must be the "
            "public port. A proxy is taken from https_proxy and no_proxy.",
        ) from error


def _fetch_leaf(host: str, port: int) -> bytes:
    """Return the server's certificate, PEM; it is checked against the bundle's authorities."""
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    # gRPC servers close connections that do not negotiate HTTP/2.
    unverified.set_alpn_protocols(["h2"])
    with (
        proxy.connect(host, port, TIMEOUT_SECONDS) as plain,
        unverified.wrap_socket(plain, server_hostname=host) as secured,
    ):
        certificate = secured.getpeercert(binary_form=True)
    # A TLS server always sends one.
    return ssl.DER_cert_to_PEM_cert(certificate or b"").encode()


async def _enroll(
    application: Application, token: JoinToken, csr_pem: bytes, ca_pem: bytes
) -> enrollment_pb2.EnrollResponse:
    async with server_authenticated(application.server, ca_pem) as channel:
        stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
        request = enrollment_pb2.EnrollRequest(
            token=token.secret,
            csr_pem=csr_pem,
            name=application.name,
            labels=application.labels,
            facts=facts_to_wire(application.facts),
            recover_device_id=application.device_id,
        )
        return await answered(stub.Enroll(request, timeout=TIMEOUT_SECONDS))


_ADVICE: Final = {
    grpc.StatusCode.UNAUTHENTICATED: "Create a token with `flotilla token create` and use it once.",
    grpc.StatusCode.PERMISSION_DENIED: "Create a token with `flotilla token create`.",
    grpc.StatusCode.NOT_FOUND: "Enrol the box again into an empty directory.",
    grpc.StatusCode.ALREADY_EXISTS: "Choose another --name, or retire the device that has it.",
    grpc.StatusCode.INVALID_ARGUMENT: "Correct the name or the labels.",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "The server is busy: run the same command again later.",
    grpc.StatusCode.UNAVAILABLE: "Check the network, and that the address is the server's public "
    "port (not the device port), then run it again.",
    grpc.StatusCode.DEADLINE_EXCEEDED: "Check the address and the network, then run it again.",
    grpc.StatusCode.UNIMPLEMENTED: "Give the server's public port.",
}


# Statuses after which the same call may succeed later, and how to phrase them.
_RETRYABLE: Final = {
    grpc.StatusCode.UNAVAILABLE: "cannot be reached",
    grpc.StatusCode.DEADLINE_EXCEEDED: "cannot be reached",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "is too busy for the box",
    grpc.StatusCode.INTERNAL: "failed",
    grpc.StatusCode.UNKNOWN: "failed",
}


def _refusal(
    error: grpc.aio.AioRpcError, application: Application, *, key: Path | None = None
) -> EnrollmentError:
    """Convert an error of the server; ``key`` names a key that the server may have accepted."""
    if problem := tls_problem(error, datetime.now(UTC)):
        return ServerUnreachableError(f"{application.server} cannot be used: {problem}")
    failure = _RETRYABLE.get(error.code(), "refused the box")
    advice = trailing(error, ADVICE_KEY) or _ADVICE.get(error.code(), "See the server's log.")
    text = f"{application.server} {failure}: {refusal_text(error)}"
    if error.code() not in _RETRYABLE:
        return EnrollmentError(text, advice=advice)
    if key is not None:
        advice += f" The box's key stays in {key}, so that the same token works again."
    return ServerUnreachableError(text, advice=advice)
