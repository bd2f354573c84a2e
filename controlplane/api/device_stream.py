"""The Connect stream of a device: its messages are stored, its desired state is pushed."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final

from flotilla.v1 import device_pb2 as wire

from artifact.device_facts import hardware_class
from artifact.health import ReleaseHealth, SlotHealth
from controlplane.api.assignment import assignment_to_wire
from controlplane.api.device_warnings import ReportedWarnings
from controlplane.api.interceptor import Context, current_certificate, current_device
from controlplane.api.receipts import detail, receipt_from_wire
from controlplane.api.streams import Admission, Stream, Streams
from controlplane.api.translate import (
    authorities_to_wire,
    count,
    facts_from_wire,
    update_state_from_wire,
    word,
)
from controlplane.api.windows import window_from_wire
from controlplane.errors import ControlPlaneError, InvalidInputError, StorageFullError
from controlplane.services.devices.class_measurements import ClassMeasurementService
from controlplane.services.devices.enrollment import EnrollService
from controlplane.services.devices.identification import IdentificationService
from controlplane.services.director import DirectorService
from controlplane.services.ingest import IngestService
from controlplane.services.signals import Signals, device_key
from controlplane.store.devices import Device
from controlplane.store.sessions import Greeting, Progress

log = logging.getLogger(__name__)

HELLO_SECONDS: Final = 30.0
FULL_RETRY_SECONDS: Final = 5.0
MAX_WINDOWS: Final = 4096
MAX_SLOTS: Final = 32
MAX_BOOT_ID_CHARACTERS: Final = 64
OUTGOING: Final = 64

Outgoing = asyncio.Queue[wire.ConnectResponse | Exception | None]


class DeviceStreams:
    """DeviceService.Connect, and the background work that outlives a stream."""

    def __init__(
        self,
        *,
        ingest: IngestService,
        enroll: EnrollService,
        identification: IdentificationService,
        director: DirectorService,
        class_measurements: ClassMeasurementService,
        signals: Signals,
        streams: Streams,
        admission: Admission,
        settings: wire.Settings,
    ) -> None:
        self._ingest = ingest
        self._enroll = enroll
        self._identification = identification
        self._director = director
        self._class_measurements = class_measurements
        self._signals = signals
        self._streams = streams
        self._admission = admission
        self._settings = settings
        self._leaving: set[asyncio.Task[None]] = set()

    async def connect(
        self, request_iterator: AsyncIterator[wire.ConnectRequest], context: Context
    ) -> AsyncIterator[wire.ConnectResponse]:
        device = current_device()
        # Before anything is read or stored: a refusal has to be cheap in a reconnect storm.
        self._admission.take(device.id)
        async with asyncio.timeout(HELLO_SECONDS):
            first = await anext(aiter(request_iterator), None)
        if first is None or not first.HasField("hello"):
            raise InvalidInputError("a stream must open with hello", advice="Update the agent.")
        greeting = _greeting(first.hello)
        stream = self._streams.open(device.id)
        outgoing: Outgoing = asyncio.Queue(OUTGOING)
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._ingest.greet(device, stream.id, greeting)
            yield wire.ConnectResponse(settings=self._settings)
            listening = asyncio.create_task(
                self._listen(device, greeting, request_iterator, outgoing)
            )
            tasks = [
                listening,
                asyncio.create_task(
                    self._push(device, greeting.hardware_class, outgoing, listening)
                ),
                asyncio.create_task(_end(stream, outgoing)),
            ]
            while (message := await outgoing.get()) is not None:
                if isinstance(message, Exception):
                    raise message
                yield message
        finally:
            for task in tasks:
                task.cancel()
            self._streams.close(stream)
            # This task may be cancelled too, and the store must still record the end of the stream.
            leaving = asyncio.create_task(self._leave(device, stream, tasks))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            await asyncio.shield(leaving)

    async def _leave(self, device: Device, stream: Stream, tasks: list[asyncio.Task[None]]) -> None:
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._ingest.leave(device, stream.id)

    async def drain(self) -> None:
        """Wait until the ends of all streams are stored."""
        await asyncio.gather(*self._leaving, return_exceptions=True)

    async def _push(
        self,
        device: Device,
        device_class: str,
        outgoing: Outgoing,
        listening: asyncio.Task[None],
    ) -> None:
        """Push the whole desired state now and after every change, while messages come."""
        try:
            sent = told = None
            with self._signals.subscribe(device_key(device.id)) as changed:
                while True:
                    # Cleared before reading: a change that comes during the read sets it again.
                    changed.clear()
                    await self._identification.check(device.id, current_certificate())
                    if told != self._enroll.authorities():
                        told = self._enroll.authorities()
                        news = wire.ConnectResponse(authorities=authorities_to_wire(told))
                        await outgoing.put(news)
                    wanted = await self._director.wanted(device.id)
                    if wanted != sent:
                        sent = wanted
                        signed = await self._director.sign(device.id, wanted)
                        release = wanted.assignment.release
                        known = await self._class_measurements.measurements(device_class, release)
                        assignment = assignment_to_wire(wanted.assignment, signed, known)
                        await outgoing.put(wire.ConnectResponse(assignment=assignment))
                    await changed.wait()
        except Exception as error:  # noqa: BLE001 - the call that waits on the queue raises it
            # Ignore further messages of a device that does not read that its stream was cut.
            listening.cancel()
            await outgoing.put(error)

    async def _listen(
        self,
        device: Device,
        greeting: Greeting,
        incoming: AsyncIterator[wire.ConnectRequest],
        outgoing: Outgoing,
    ) -> None:
        warnings = ReportedWarnings(device.id, device.name)
        try:
            async for message in incoming:
                warnings.note(message.status.warnings)
                ack = await self._take_when_stored(device, greeting, message)
                if ack is not None:
                    await outgoing.put(wire.ConnectResponse(ack=ack))
            await outgoing.put(None)
        except Exception as error:  # noqa: BLE001 - the call that waits on the queue raises it
            await outgoing.put(error)

    async def _take_when_stored(
        self, device: Device, greeting: Greeting, message: wire.ConnectRequest
    ) -> wire.Ack | None:
        """Take a message, waiting while the disk is full.

        Nothing is acknowledged before it is stored. Ending the stream instead would make every
        device reconnect again and again, and would keep assignments from it.
        """
        while True:
            try:
                return await self._take(device, greeting, message)
            except StorageFullError:
                await asyncio.sleep(FULL_RETRY_SECONDS)

    async def _take(
        self, device: Device, greeting: Greeting, message: wire.ConnectRequest
    ) -> wire.Ack | None:
        match message.WhichOneof("message"):
            case "status":
                await self._ingest.progress(device, _progress(message.status))
                return None
            case "receipt":
                return await self._take_receipt(device, message.receipt)
            case "telemetry":
                return await self._take_telemetry(device, message.telemetry)
            case other:
                raise InvalidInputError(
                    f"a stream cannot go on with {other} (boot {greeting.boot_id!r})",
                    advice="Update this server before its agents.",
                )

    async def _take_receipt(self, device: Device, message: wire.SignedReceipt) -> wire.Ack:
        receipt = receipt_from_wire(message.receipt)
        await self._ingest.receipt(
            device, receipt, signed=message.receipt, signature=message.signature
        )
        return wire.Ack(receipt_generations=[receipt.generation])

    async def _take_telemetry(self, device: Device, batch: wire.TelemetryBatch) -> wire.Ack:
        if len(batch.windows) > MAX_WINDOWS:
            raise InvalidInputError(
                f"{len(batch.windows)} windows are more than {MAX_WINDOWS}",
                advice="Send them in several batches.",
            )
        windows = []
        dropped = 0
        for window in batch.windows:
            try:
                windows.append(window_from_wire(window))
            except ControlPlaneError as error:
                dropped = max(dropped, window.sequence)
                log.warning("window_dropped device=%s reason=%s", device.id, ascii(str(error)))
        stored = await self._ingest.windows(device, _boot_id(batch.boot_id), windows)
        # An invalid window is acknowledged too; otherwise the agent would send it without end.
        return wire.Ack(telemetry_sequence=max(stored, dropped))


async def _end(stream: Stream, outgoing: Outgoing) -> None:
    await outgoing.put(await stream.ended())


def _boot_id(text: str) -> str:
    if not 0 < len(text) <= MAX_BOOT_ID_CHARACTERS:
        raise InvalidInputError(
            f"a boot id of {len(text)} characters is none", advice="Update the agent."
        )
    return word(text)


def _greeting(hello: wire.Hello) -> Greeting:
    facts = facts_from_wire(hello.facts)
    return Greeting(
        boot_id=_boot_id(hello.boot_id),
        agent_version=word(hello.agent_version)[:64],
        facts=facts,
        hardware_class=hardware_class(facts),
        generation=count(hello.generation, "generation"),
        current_release=word(hello.current_release),
        last_good_release=word(hello.last_good_release),
    )


def _progress(status: wire.UpdateStatus) -> Progress:
    return Progress(
        generation=count(status.generation, "generation"),
        state=update_state_from_wire(status.state),
        detail=detail(status.detail),
        bytes_done=count(status.bytes_done, "bytes_done"),
        bytes_total=count(status.bytes_total, "bytes_total"),
        current_release=word(status.current_release),
        last_good_release=word(status.last_good_release),
        health=_health(status.health) if status.HasField("health") else None,
    )


def _health(health: wire.ReleaseHealth) -> ReleaseHealth:
    return ReleaseHealth(
        word(health.release),
        tuple(
            SlotHealth(
                slot=word(each.slot),
                ready=each.ready,
                worker_restarts=count(each.worker_restarts, "worker_restarts"),
                requests=count(each.requests, "requests"),
                errors=count(each.errors, "errors"),
            )
            for each in health.slots[:MAX_SLOTS]
        ),
    )
