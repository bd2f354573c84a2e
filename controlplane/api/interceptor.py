"""Processing that every RPC shares: authentication, authorisation, deadlines, statuses."""

import asyncio
import contextlib
import ipaddress
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError, Message

from controlplane.api.bounds import check_request
from controlplane.api.error_statuses import plain, status_of
from controlplane.api.roles import DEVICE, LENIENT, MINIMUM_ROLE, OPEN
from controlplane.api.streams import OpenCalls
from controlplane.errors import (
    ControlPlaneError,
    ForbiddenError,
    InvalidInputError,
    UnauthenticatedError,
)
from controlplane.metrics import Metrics
from controlplane.services.access import AccessService, Caller
from controlplane.store.devices import Device

log = logging.getLogger(__name__)

# Generic only for the type checker.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

# Longest wait for the single request of a unary call.
REQUEST_SECONDS: Final = 20.0
UNARY_SECONDS: Final = 60.0
# Longest wait for the next message of an upload: 8 MiB at the 32 KiB/s that the CLI allows. An
# upload has no limit as a whole, because large models take as long as they take.
UPLOAD_IDLE_SECONDS: Final = 300.0
# Calls that need no identity: the most that one address may have open, and their longest stream.
# Many boxes may enrol from behind one address at once.
MAX_OPEN_CALLS: Final = 256
OPEN_STREAM_SECONDS: Final = 30.0

_caller: ContextVar[Caller] = ContextVar("caller")
_device: ContextVar[Device] = ContextVar("device")
_certificate: ContextVar[bytes] = ContextVar("certificate")


def current_caller() -> Caller:
    """Return the caller of this call on the public port."""
    return _caller.get()


def current_device() -> Device:
    """Return the device of this call on the device port, as it was when the call began."""
    return _device.get()


def current_certificate() -> bytes:
    """Return the certificate (PEM) of this call's connection."""
    return _certificate.get()


class Door(Protocol):
    """Access rules of one port."""

    async def admit(self, method: str, context: Context) -> None:
        """Identify the caller of this call; raises UnauthenticatedError or ForbiddenError."""

    def elsewhere(self, method: str) -> ControlPlaneError | None:
        """Return the error for a method that another port serves; None if no port serves it."""


class PublicDoor:
    """Bearer tokens, each with a role; a few methods are open."""

    def __init__(self, access: AccessService) -> None:
        self._access = access

    async def admit(self, method: str, context: Context) -> None:
        if method in OPEN:
            return
        needed = MINIMUM_ROLE.get(method)
        if needed is None:
            raise ForbiddenError(f"nobody may call {method}", advice="Update the server.")
        scheme, _, secret = _metadata(context, "authorization").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise UnauthenticatedError(
                f"{method} needs an API token; a device certificate does not open it",
                advice="Send `authorization: Bearer TOKEN`; the CLI has it in its context file.",
            )
        caller = await self._access.authenticate(secret)
        if not caller.role.includes(needed):
            raise ForbiddenError(
                f"a token of the role {caller.role} may not call {method}; it needs {needed}",
                advice="Ask an admin: `flotilla access token create` with that role.",
            )
        _caller.set(caller)

    def elsewhere(self, method: str) -> ControlPlaneError | None:
        if method not in DEVICE:
            return None
        return ForbiddenError(
            f"{method} is not served on the public port",
            advice="Agents use the device port, with their certificate.",
        )


class DeviceDoor:
    """Device certificates, whose serial must be the device's current one."""

    def __init__(self, identify: Callable[[bytes], Awaitable[Device]]) -> None:
        self._identify = identify

    async def admit(self, method: str, context: Context) -> None:
        del method
        if _metadata(context, "authorization"):
            raise UnauthenticatedError(
                "an API token opens nothing on the device port",
                advice="Use the public port, which `flotilla serve` names in endpoints.json.",
            )
        pem = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
        _device.set(await self._identify(pem))
        _certificate.set(pem)

    def elsewhere(self, method: str) -> ControlPlaneError | None:
        if method not in MINIMUM_ROLE and method not in OPEN:
            return None
        return ForbiddenError(
            f"{method} is not served on the device port; a device certificate does not open it",
            advice="Use the public port, with an API token.",
        )


class Interceptor(grpc.aio.ServerInterceptor):
    """Admits calls through a door, and maps their errors to statuses."""

    def __init__(self, door: Door, metrics: Metrics) -> None:
        self._door = door
        self._metrics = metrics
        self._open_calls = OpenCalls(MAX_OPEN_CALLS, "this address")

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        # A method of another port gets a reason; gRPC answers UNIMPLEMENTED to any other.
        if handler is None:
            refusal = self._door.elsewhere(method)
            return None if refusal is None else _refuse(refusal, method)
        return self._guard(handler, method)

    def _guard(self, handler: Handler, method: str) -> Handler:
        """Wrap a method so that it runs within a call.

        Requests are read here as bytes: the caller is identified before its message is parsed, and
        a message that is malformed or does not arrive ends like every other error.
        """
        inner = _behaviour(handler)

        async def request(incoming: AsyncIterator[bytes], context: Context) -> Any:
            if handler.request_streaming:
                # A device's stream, which also answers, may be silent for hours.
                bounded = incoming if handler.response_streaming else _without_pauses(incoming)
                return _decoded(handler, bounded, method)
            async with asyncio.timeout(REQUEST_SECONDS):
                data = await context.read()
            if not isinstance(data, bytes):
                raise InvalidInputError(
                    f"a call of {method} came without its request", advice="Update the caller."
                )
            return _decode(handler, data, method)

        async def answer(incoming: AsyncIterator[bytes], context: Context) -> Any:
            limit = None if handler.request_streaming else UNARY_SECONDS
            async with self._call(method, context), asyncio.timeout(limit):
                return await inner(await request(incoming, context), context)

        async def stream(incoming: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
            limit = OPEN_STREAM_SECONDS if method in OPEN else None
            async with (
                self._call(method, context),
                asyncio.timeout(limit),
                contextlib.aclosing(inner(await request(incoming, context), context)) as messages,
            ):
                async for message in messages:
                    yield message

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                stream, response_serializer=handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(
            answer, response_serializer=handler.response_serializer
        )

    def _room(self, method: str, context: Context) -> contextlib.AbstractContextManager[None]:
        """Count a call without an identity against its address; raise OverloadedError if full."""
        if method not in OPEN:
            return contextlib.nullcontext()
        return self._open_calls.open(caller_address(context.peer()))

    @contextlib.asynccontextmanager
    async def _call(self, method: str, context: Context) -> AsyncIterator[None]:
        started = time.monotonic()
        code = grpc.StatusCode.OK
        try:
            await self._door.admit(method, context)
            with self._room(method, context):
                yield
        except grpc.aio.AbortError:
            code = grpc.StatusCode.ABORTED
            raise
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:  # noqa: BLE001 - the last stop: every error becomes a status
            status = status_of(error, method)
            code = status.code
            log.info(
                "call_refused method=%s code=%s peer=%s reason=%s",
                method,
                code.name,
                plain(context.peer()),
                status.message,
            )
            await context.abort(status.code, status.message, status.trailing)
        finally:
            self._metrics.calls.labels(method, code.name).inc()
            self._metrics.call_seconds.labels(method).observe(time.monotonic() - started)


def caller_address(peer: str) -> str:
    """Return the address of a gRPC peer without its port; of IPv6 the /64, which one host may own.

    A peer without an address (a Unix socket) is returned as it is.
    """
    host = unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _metadata(context: Context, key: str) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == key:
            return value if isinstance(value, str) else ""
    return ""


def _behaviour(handler: Handler) -> Any:
    return (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )


async def _without_pauses(incoming: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the messages of an upload; TimeoutError if one takes too long."""
    messages = aiter(incoming)
    while True:
        async with asyncio.timeout(UPLOAD_IDLE_SECONDS):
            message = await anext(messages, None)
        if message is None:
            return
        yield message


async def _decoded(
    handler: Handler, incoming: AsyncIterator[bytes], method: str
) -> AsyncIterator[Any]:
    async for data in incoming:
        yield _decode(handler, data, method)


def _decode(handler: Handler, data: bytes, method: str) -> Any:
    if handler.request_deserializer is None:
        return data
    try:
        message = handler.request_deserializer(data)
    except DecodeError as error:
        raise InvalidInputError(
            f"a request of {method} cannot be read", advice="Update the caller."
        ) from error
    # A device's stream scrubs its messages instead: a refusal would end it, again and again.
    if method not in LENIENT and isinstance(message, Message):
        check_request(message)
    return message


def _refuse(error: ControlPlaneError, method: str) -> Handler:
    status = status_of(error, method)

    async def refuse(request: bytes, context: Context) -> None:
        del request
        await context.abort(status.code, status.message, status.trailing)

    return grpc.unary_unary_rpc_method_handler(refuse)
