"""Calls of DeviceService over one channel, which a renewed certificate replaces."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Final, TypeAlias

import grpc
import grpc.aio
from flotilla.v1 import device_pb2, device_pb2_grpc

from agent.errors import ChunkMissingError, DownloadError, SourceUnavailableError
from agent.identity.credentials import Credentials
from agent.link.channels import answered, mutually_authenticated
from agent.link.deltas import delta_from_wire, digests_to_wire
from agent.link.translate import authorities_from_wire, refusal_text
from agent.storage.deltas import BeingMade, Offer
from artifact.manifest import File
from artifact.trust.statements import Authorities

# Generic only for the type checker.
_FetchChunks: TypeAlias = "grpc.aio.UnaryStreamMultiCallable[device_pb2.FetchChunksRequest, bytes]"

UNARY_SECONDS: Final = 30.0
# A unary call shows no progress, so the time has to suffice for the largest metadata (2 MiB) on a
# slow link (7 KiB/s).
METADATA_SECONDS: Final = 300.0
# Calls on a channel that a new certificate replaced may take this long to end.
OLD_CHANNEL_SECONDS: Final = 600.0
_FETCH_CHUNKS: Final = "/flotilla.v1.DeviceService/FetchChunks"
# After these statuses the same call may succeed later; after others the request itself is wrong.
_RETRYABLE: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)


class Connection:
    """Calls to the control plane as this device. Implements agent.storage.transfer.ChunkSource."""

    def __init__(self, endpoint: str, identity: Credentials) -> None:
        self.endpoint = endpoint
        self._channel = mutually_authenticated(endpoint, identity)
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def stub(self) -> "device_pb2_grpc.DeviceServiceAsyncStub":
        """The generated stub on the current channel, for calls that have no method here."""
        # The asynchronous stub exists only for the type checker.
        return device_pb2_grpc.DeviceServiceStub(self._channel)

    def replace_identity(self, identity: Credentials) -> None:
        """Open a channel with a new certificate; calls in progress end on the old channel."""
        self._replace_channel(identity, OLD_CHANNEL_SECONDS)

    def move(self, endpoint: str, identity: Credentials) -> None:
        """Open a channel to another server, and cancel calls to the old one."""
        self.endpoint = endpoint
        self._replace_channel(identity, None)

    def _replace_channel(self, identity: Credentials, grace_seconds: float | None) -> None:
        old, self._channel = self._channel, mutually_authenticated(self.endpoint, identity)
        task = asyncio.create_task(old.close(grace_seconds))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Cancel all calls and close the channels."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._channel.close(None)

    async def fetch(self, digests: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
        """Yield raw bytes of chunks (docs/adr/0002); SourceUnavailableError, ChunkMissingError."""
        method: _FetchChunks = self._channel.unary_stream(
            _FETCH_CHUNKS,
            request_serializer=device_pb2.FetchChunksRequest.SerializeToString,
            response_deserializer=None,
        )
        call = method(device_pb2.FetchChunksRequest(digests=digests))
        try:
            async for piece in call:
                yield piece
        except grpc.aio.AioRpcError as error:
            raise _download_error(error) from error
        except asyncio.CancelledError:
            # grpc.aio raises CancelledError in the reader when the old channel of a renewed
            # certificate closes. Only a cancelled task is really cancelled.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise SourceUnavailableError(
                "the channel of a replaced certificate closed during the call",
                advice="The agent retries automatically.",
            ) from None
        finally:
            call.cancel()

    async def delta(self, bases: Sequence[File], target: File) -> Offer | BeingMade | None:
        """Ask for a delta from one of ``bases`` to ``target``; SourceUnavailableError."""
        request = device_pb2.GetDeltaRequest(
            bases=[digests_to_wire(base) for base in bases], target=digests_to_wire(target)
        )
        try:
            answer = await answered(self.stub.GetDelta(request, timeout=UNARY_SECONDS))
        except grpc.aio.AioRpcError as error:
            if error.code() in _RETRYABLE:
                raise _download_error(error) from error
            # The server does not support deltas, or does not have these files.
            return None
        return delta_from_wire(answer)

    async def metadata(self, name: str) -> bytes | None:
        """Fetch a metadata file; None if the server has no such name. SourceUnavailableError."""
        try:
            request = device_pb2.FetchMetadataRequest(name=name)
            answer = await answered(self.stub.FetchMetadata(request, timeout=METADATA_SECONDS))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise _download_error(error) from error
        return answer.data

    async def renew(self, csr_pem: bytes) -> tuple[bytes, Authorities | None]:
        """Request a certificate for the same key; also returns the server's authorities if sent."""
        try:
            request = device_pb2.RenewCertificateRequest(csr_pem=csr_pem)
            answer = await answered(self.stub.RenewCertificate(request, timeout=UNARY_SECONDS))
        except grpc.aio.AioRpcError as error:
            raise _download_error(error) from error
        if not answer.HasField("authorities"):
            return answer.certificate_pem, None
        return answer.certificate_pem, authorities_from_wire(answer.authorities)


def _download_error(error: grpc.aio.AioRpcError) -> DownloadError:
    text = refusal_text(error)
    if error.code() in _RETRYABLE:
        return SourceUnavailableError(text, advice="The agent retries automatically.")
    return ChunkMissingError(text, advice="Publish the release again.")
