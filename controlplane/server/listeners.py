"""Listeners: TLS with certificates that change while serving, and gRPC limits."""

import socket
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection

from controlplane.api.interceptor import Door, Interceptor
from controlplane.config import Address
from controlplane.errors import AddressError
from controlplane.metrics import Metrics
from controlplane.services.keys.server_keys import ServerKeys

# A chunk index is the largest message: 3 MiB.
MAX_MESSAGE_BYTES: Final = 8 << 20
MAX_STREAMS_PER_CONNECTION: Final = 128
GRPC_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
    # Without this, a second server on the port would silently get half of the connections.
    ("grpc.so_reuseport", 0),
    # Detects within a minute a peer that vanished without closing its connection.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Closes connections without calls; agents always hold a stream.
    ("grpc.max_connection_idle_ms", 300_000),
)


def grpc_server(door: Door, metrics: Metrics, handshake_seconds: float) -> grpc.aio.Server:
    """Make a server whose calls are all authenticated by ``door``."""
    handshake = ("grpc.server_handshake_timeout_ms", round(handshake_seconds * 1000))
    return grpc.aio.server(
        interceptors=[Interceptor(door, metrics)], options=(*GRPC_OPTIONS, handshake)
    )


def add_port(
    server: grpc.aio.Server, address: Address, keys: ServerKeys, *, mutual: bool
) -> Address:
    """Listen with TLS and return the bound address.

    ``mutual`` requires callers to present a device certificate.
    """
    try:
        port = server.add_secure_port(str(address), _credentials(keys, mutual=mutual))
    except RuntimeError as error:
        raise _taken(address) from error
    return Address(address.host, port)


def bind(address: Address) -> socket.socket:
    """Bind a socket for plain HTTP; AddressError if the address is taken."""
    try:
        family, _, _, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
    except OSError as error:
        raise _taken(address) from error
    return listener


async def add_health_and_reflection(server: grpc.aio.Server, services: tuple[str, ...]) -> None:
    """Add the standard health and reflection services for these services."""
    checks = health.aio.HealthServicer()
    # Not the generated function: it would add Watch, and any caller could hold its streams open. A
    # client that finds Watch unimplemented takes the server as healthy (gRPC's health protocol).
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Check": grpc.unary_unary_rpc_method_handler(
            checks.Check,
            request_deserializer=health_pb2.HealthCheckRequest.FromString,
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        ),
    }
    generic = grpc.method_handlers_generic_handler(health.SERVICE_NAME, handlers)
    server.add_generic_rpc_handlers((generic,))
    for name in ("", *services):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    shown = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(shown, server)


def _credentials(keys: ServerKeys, *, mutual: bool) -> grpc.ServerCredentials:
    served = keys.tls, keys.authorities.offered

    def make() -> grpc.ServerCertificateConfiguration:
        tls, authorities = served
        pair = (tls.key_pem, tls.chain_pem)
        accepted = authorities.bundle if mutual else None
        return grpc.ssl_server_certificate_configuration([pair], accepted)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Return new credentials, or None to keep the last; gRPC calls it at every handshake."""
        nonlocal served
        now = keys.tls, keys.authorities.offered
        if now == served:
            return None
        served = now
        return make()

    # The type stubs leave out None, which gRPC's documentation allows.
    return grpc.dynamic_ssl_server_credentials(make(), fetch, mutual)  # type: ignore[arg-type]


def _taken(address: Address) -> AddressError:
    return AddressError(
        f"cannot listen on {address}",
        advice="Something else may have the port: choose another, or stop it.",
    )
