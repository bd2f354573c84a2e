"""gRPC channels as the agent opens them."""

from collections.abc import Awaitable
from typing import Final, TypeVar

import grpc
import grpc.aio

from agent.identity.credentials import Credentials

T = TypeVar("T")

MAX_MESSAGE_BYTES: Final = 4 << 20

# Reconnecting is paced by agent.link.stream; the channel's own backoff only must not be slower.
_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 10_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # One box is one client: subchannels shared between channels would share a certificate too.
    ("grpc.use_local_subchannel_pool", 1),
)


def server_authenticated(endpoint: str, roots_pem: bytes) -> grpc.aio.Channel:
    """A channel to a server whose certificate one of ``roots_pem`` vouches for."""
    credentials = grpc.ssl_channel_credentials(root_certificates=roots_pem)
    return grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)


def mutually_authenticated(endpoint: str, identity: Credentials) -> grpc.aio.Channel:
    """A channel on which the device's certificate says who it is."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=identity.ca_pem,
        private_key=identity.key_pem,
        certificate_chain=identity.certificate_pem,
    )
    return grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)


async def answered(call: Awaitable[T]) -> T:
    """A unary call's answer; AioRpcError for one that cannot be read, which gRPC gives as None."""
    answer = await call
    if answer is None:
        nothing = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.INTERNAL, nothing, nothing, details="the answer cannot be read"
        )
    return answer
