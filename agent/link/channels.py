"""gRPC channels and their options."""

from collections.abc import Awaitable
from typing import Final, TypeVar

import grpc
import grpc.aio

from agent.identity.credentials import Credentials

T = TypeVar("T")

MAX_MESSAGE_BYTES: Final = 4 << 20

# agent.link.stream decides when to reconnect; the channel's own backoff must not be longer.
_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 10_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # gRPC shares subchannels between channels with equal options, whatever their certificates: a
    # channel with a renewed certificate would keep using the connection of the old one.
    ("grpc.use_local_subchannel_pool", 1),
)


def server_authenticated(endpoint: str, roots_pem: bytes) -> grpc.aio.Channel:
    """Open a channel to a server whose certificate one of ``roots_pem`` signed."""
    credentials = grpc.ssl_channel_credentials(root_certificates=roots_pem)
    return grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)


def mutually_authenticated(endpoint: str, identity: Credentials) -> grpc.aio.Channel:
    """Open a channel that authenticates the device by its certificate."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=identity.ca_pem,
        private_key=identity.key_pem,
        certificate_chain=identity.certificate_pem,
    )
    return grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)


async def answered(call: Awaitable[T]) -> T:
    """Await a unary call and return its answer; AioRpcError.

    grpc.aio returns None for an answer that it cannot parse: that is INTERNAL here.
    """
    answer = await call
    if answer is None:
        empty = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.INTERNAL, empty, empty, details="the answer cannot be parsed"
        )
    return answer
