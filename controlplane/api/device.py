"""Servicer of DeviceService's downloads and certificates; ``device_stream`` has Connect."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import grpc
from flotilla.v1 import device_pb2 as wire

from controlplane.api.bandwidth import Bandwidth
from controlplane.api.device_stream import DeviceStreams
from controlplane.api.interceptor import Context, current_certificate, current_device
from controlplane.api.streams import OpenCalls
from controlplane.api.translate import authorities_to_wire
from controlplane.errors import InvalidInputError
from controlplane.metrics import Metrics
from controlplane.services.devices.enrollment import EnrollService
from controlplane.services.devices.identification import IdentificationService
from controlplane.services.publishing.deltas import BeingMade, DeltaService, FileDigests, Ready
from controlplane.services.publishing.metadata import ImageRepositoryService
from controlplane.services.signals import Signals, device_key

MAX_DIGESTS: Final = 4096
# An agent has one download, and a second one while it changes its certificate.
MAX_DOWNLOADS: Final = 8
FETCH_CHUNKS: Final = "FetchChunks"


class DeviceServicer:
    """RPCs of agents, identified by their certificates; see ``add_device_servicer``."""

    def __init__(
        self,
        *,
        enroll: EnrollService,
        identification: IdentificationService,
        repository: ImageRepositoryService,
        deltas: DeltaService,
        signals: Signals,
        bandwidth: Bandwidth,
        metrics: Metrics,
    ) -> None:
        self._enroll = enroll
        self._identification = identification
        self._repository = repository
        self._deltas = deltas
        self._signals = signals
        self._bandwidth = bandwidth
        self._metrics = metrics
        # Each download holds memory while the device does not read.
        self._downloads = OpenCalls(MAX_DOWNLOADS, "this device")

    async def fetch_chunks(
        self, request: wire.FetchChunksRequest, context: Context
    ) -> AsyncIterator[bytes]:
        """Stream raw bytes, without a protobuf message around them (docs/adr/0002)."""
        if not 1 <= len(request.digests) <= MAX_DIGESTS:
            raise InvalidInputError(
                f"{len(request.digests)} chunks are not within 1 to {MAX_DIGESTS}",
                advice="Ask for fewer at once.",
            )
        device = current_device()
        holder = self._deltas.holder(request.digests[0])
        messages = holder.messages(request.digests, request.offset)
        # Read one piece ahead, so that disk and network work in parallel.
        reading = asyncio.create_task(_next(messages))
        try:
            with (
                self._downloads.open(device.id),
                self._signals.subscribe(device_key(device.id)) as changed,
            ):
                while (data := await reading) is not None:
                    reading = asyncio.create_task(_next(messages))
                    # The device may have been banned since the last piece.
                    if changed.is_set():
                        changed.clear()
                        await self._identification.check(device.id, current_certificate())
                    async for piece in self._bandwidth.paced(device.id, device.labels, data):
                        self._metrics.chunk_bytes.inc(len(piece))
                        yield piece
        finally:
            # A generator cannot be closed while a thread executes it.
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await asyncio.shield(reading)
            messages.close()

    async def FetchMetadata(
        self, request: wire.FetchMetadataRequest, context: Context
    ) -> wire.FetchMetadataResponse:
        return wire.FetchMetadataResponse(data=await self._repository.file(request.name))

    async def RenewCertificate(
        self, request: wire.RenewCertificateRequest, context: Context
    ) -> wire.RenewCertificateResponse:
        certificate_pem = await self._enroll.renew(current_device(), request.csr_pem)
        return wire.RenewCertificateResponse(
            certificate_pem=certificate_pem,
            authorities=authorities_to_wire(self._enroll.authorities()),
        )

    async def GetDelta(
        self, request: wire.GetDeltaRequest, context: Context
    ) -> wire.GetDeltaResponse:
        found = await self._deltas.get(
            [_digests(base) for base in request.bases], _digests(request.target)
        )
        match found:
            case Ready(base_sha256, delta):
                return wire.GetDeltaResponse(
                    state=wire.DELTA_STATE_READY,
                    base_sha256=base_sha256,
                    delta=wire.FileDigests(
                        sha256=bytes.fromhex(delta.sha256), index=bytes.fromhex(delta.index)
                    ),
                    size=delta.size,
                )
            case BeingMade(seconds):
                return wire.GetDeltaResponse(
                    state=wire.DELTA_STATE_BEING_MADE, retry_after_seconds=seconds
                )
            case None:
                return wire.GetDeltaResponse(state=wire.DELTA_STATE_NONE)


def add_device_servicer(
    streams: DeviceStreams, servicer: DeviceServicer, server: grpc.aio.Server
) -> None:
    """Register like the generated function, except that FetchChunks answers with raw bytes."""
    name = wire.DESCRIPTOR.services_by_name["DeviceService"].full_name
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Connect": grpc.stream_stream_rpc_method_handler(
            streams.connect,
            request_deserializer=wire.ConnectRequest.FromString,
            response_serializer=wire.ConnectResponse.SerializeToString,
        ),
        FETCH_CHUNKS: grpc.unary_stream_rpc_method_handler(
            servicer.fetch_chunks,
            request_deserializer=wire.FetchChunksRequest.FromString,
            # Bytes pass as they are; a protobuf message would copy them (docs/adr/0002).
            response_serializer=None,
        ),
        "FetchMetadata": grpc.unary_unary_rpc_method_handler(
            servicer.FetchMetadata,
            request_deserializer=wire.FetchMetadataRequest.FromString,
            response_serializer=wire.FetchMetadataResponse.SerializeToString,
        ),
        "RenewCertificate": grpc.unary_unary_rpc_method_handler(
            servicer.RenewCertificate,
            request_deserializer=wire.RenewCertificateRequest.FromString,
            response_serializer=wire.RenewCertificateResponse.SerializeToString,
        ),
        "GetDelta": grpc.unary_unary_rpc_method_handler(
            servicer.GetDelta,
            request_deserializer=wire.GetDeltaRequest.FromString,
            response_serializer=wire.GetDeltaResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))


async def _next(messages: Iterator[bytes]) -> bytes | None:
    return await asyncio.to_thread(next, messages, None)


def _digests(file: wire.FileDigests) -> FileDigests:
    return FileDigests(file.sha256, file.index)
