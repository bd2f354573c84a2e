"""A control plane for tests: real TLS, scripted answers, and a record of all messages."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
from flotilla.v1 import device_pb2 as wire

from tests.agent.tls import Authority

RETRY_AFTER_KEY = "flotilla-retry-after-ms"


class ControlPlane:
    """A server for one device at a time, on a loopback port."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.port = 0
        self.received: list[wire.ConnectRequest] = []
        self.came = asyncio.Event()
        self.streams = 0
        self.assignment = wire.Assignment()
        # Status and number of streams to refuse first.
        self.refusals: list[tuple[grpc.StatusCode, str]] = []
        self.acknowledges = True
        self.chunks: dict[bytes, bytes] = {}
        self.metadata: dict[str, bytes] = {}
        self.certificate_life = timedelta(hours=1)
        self.serials: list[bytes] = []
        self._server: grpc.aio.Server | None = None
        self._drop = asyncio.Event()

    async def start(self) -> None:
        self._server = grpc.aio.server()
        # Like the control plane: FetchChunks sends raw bytes (docs/adr/0002).
        handlers = {
            "Connect": grpc.stream_stream_rpc_method_handler(
                self._connect,
                request_deserializer=wire.ConnectRequest.FromString,
                response_serializer=wire.ConnectResponse.SerializeToString,
            ),
            "FetchChunks": grpc.unary_stream_rpc_method_handler(
                self._fetch_chunks,
                request_deserializer=wire.FetchChunksRequest.FromString,
                response_serializer=None,
            ),
            "FetchMetadata": grpc.unary_unary_rpc_method_handler(
                self._fetch_metadata,
                request_deserializer=wire.FetchMetadataRequest.FromString,
                response_serializer=wire.FetchMetadataResponse.SerializeToString,
            ),
            "RenewCertificate": grpc.unary_unary_rpc_method_handler(
                self._renew,
                request_deserializer=wire.RenewCertificateRequest.FromString,
                response_serializer=wire.RenewCertificateResponse.SerializeToString,
            ),
        }
        handler = grpc.method_handlers_generic_handler("flotilla.v1.DeviceService", handlers)
        self._server.add_generic_rpc_handlers((handler,))
        self.port = self._server.add_secure_port(
            f"127.0.0.1:{self.port}",
            self.authority.server_credentials("127.0.0.1", mutual=True),
        )
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def drop_stream(self) -> None:
        """Break the open stream."""
        self._drop.set()

    async def until(self, ready: Callable[[list[wire.ConnectRequest]], Any]) -> Any:
        """Wait until ``ready`` returns a true value for the messages received; return it."""
        async with asyncio.timeout(15):
            while not (found := ready(self.received)):
                self.came.clear()
                await self.came.wait()
            return found

    async def _connect(
        self, requests: AsyncIterator[wire.ConnectRequest], context: Any
    ) -> AsyncIterator[wire.ConnectResponse]:
        self.streams += 1
        self.came.set()
        if self.refusals:
            code, milliseconds = self.refusals.pop(0)
            trailing = ((RETRY_AFTER_KEY, milliseconds),) if milliseconds else ()
            await context.abort(code, "not now", trailing)
        self._drop.clear()
        self.serials.append(context.auth_context()["x509_pem_cert"][0])
        outgoing: asyncio.Queue[wire.ConnectResponse | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read(requests, outgoing))
        dropper = asyncio.create_task(self._end(outgoing))
        try:
            while (message := await outgoing.get()) is not None:
                yield message
        finally:
            reader.cancel()
            dropper.cancel()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "dropped")

    async def _end(self, outgoing: asyncio.Queue[Any]) -> None:
        await self._drop.wait()
        await outgoing.put(None)

    async def _read(
        self, requests: AsyncIterator[wire.ConnectRequest], outgoing: asyncio.Queue[Any]
    ) -> None:
        async for message in requests:
            self.received.append(message)
            if message.HasField("hello"):
                settings = wire.Settings(telemetry_window_seconds=0.2, status_interval_seconds=0.5)
                await outgoing.put(wire.ConnectResponse(settings=settings))
                await outgoing.put(wire.ConnectResponse(assignment=self.assignment))
            ack = self._ack(message)
            if ack is not None and self.acknowledges:
                await outgoing.put(wire.ConnectResponse(ack=ack))
            self.came.set()

    def _ack(self, message: wire.ConnectRequest) -> wire.Ack | None:
        if message.HasField("receipt"):
            receipt = wire.Receipt.FromString(message.receipt.receipt)
            return wire.Ack(receipt_generations=[receipt.generation])
        if message.HasField("telemetry"):
            sequence = max(window.sequence for window in message.telemetry.windows)
            return wire.Ack(telemetry_sequence=sequence)
        return None

    async def _fetch_chunks(
        self, request: wire.FetchChunksRequest, context: Any
    ) -> AsyncIterator[bytes]:
        for digest in request.digests:
            if digest not in self.chunks:
                await context.abort(grpc.StatusCode.NOT_FOUND, f"no chunk {digest.hex()}")
            yield self.chunks[digest]

    async def _fetch_metadata(
        self, request: wire.FetchMetadataRequest, context: Any
    ) -> wire.FetchMetadataResponse:
        if request.name not in self.metadata:
            await context.abort(grpc.StatusCode.NOT_FOUND, "none of that name")
        return wire.FetchMetadataResponse(data=self.metadata[request.name])

    async def _renew(
        self, request: wire.RenewCertificateRequest, context: Any
    ) -> wire.RenewCertificateResponse:
        pem = self.authority.device(request.csr_pem, self.certificate_life)
        return wire.RenewCertificateResponse(certificate_pem=pem)
