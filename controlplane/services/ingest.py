"""Ingest of device messages: Hello, progress, receipts and telemetry."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from artifact.window import Window
from controlplane.errors import InvalidInputError, StorageError, StorageFullError
from controlplane.fleet import UpdateState
from controlplane.metrics import Metrics
from controlplane.rollouts.commands import UpdateResult
from controlplane.services.devices.restored import adopt_generation
from controlplane.services.rollouts.driver import RolloutDriver
from controlplane.services.signals import FLEET_CHANGED, Signals
from controlplane.store import receipts, sessions, telemetry
from controlplane.store.database import Database
from controlplane.store.devices import Device
from controlplane.store.receipts import Receipt
from controlplane.store.sessions import Greeting, Progress
from controlplane.telemetry import check_window

log = logging.getLogger(__name__)

# Reasons in receipts that are faults of the device or of its link, as in agent.errors and
# agent.update: the update is assigned again, up to max_retries times, before it has failed.
DEVICE_FAULTS: Final = frozenset(
    {
        "clock_set_back",
        "disk_failed",
        "disk_full",
        "download_too_slow",
        "interrupted",
        "metadata_expired",
        "server_unreachable",
    }
)

# A stream without a sign of life for this long ended with the process that held it.
SILENT_SECONDS: Final = 90.0


class IngestService:
    """Stores every message of a device's stream, each once."""

    def __init__(
        self,
        database: Database,
        signals: Signals,
        rollouts: RolloutDriver,
        metrics: Metrics,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._signals = signals
        self._rollouts = rollouts
        self._metrics = metrics
        self._clock = clock

    async def greet(self, device: Device, session: str, greeting: Greeting) -> None:
        try:
            async with self._database.write() as tx:
                now = self._clock()
                await sessions.greet(tx, device.id, session, greeting, now)
                await adopt_generation(tx, device, greeting, now)
                tx.after_commit(lambda: self._signals.notify(FLEET_CHANGED))
        except StorageFullError:
            # The stream is worth more than its record: the device still gets its orders, and
            # ``touch`` and its next reports are stored once there is space again.
            log.warning("device_not_recorded device=%s name=%s", device.id, device.name)
        log.info(
            "device_connected device=%s name=%s current=%s",
            device.id,
            device.name,
            ascii(greeting.current_release),
        )

    async def leave(self, device: Device, session: str) -> None:
        # If the record fails, ``expire`` finds the silent session later.
        with contextlib.suppress(StorageError):
            await self._store_leave(device, session)
        log.info("device_left device=%s name=%s", device.id, device.name)

    async def _store_leave(self, device: Device, session: str) -> None:
        async with self._database.write() as tx:
            if await sessions.leave(tx, device.id, session, self._clock()):
                tx.after_commit(lambda: self._signals.notify(FLEET_CHANGED))

    async def progress(self, device: Device, progress: Progress) -> None:
        async with self._database.write() as tx:
            await sessions.report_progress(tx, device.id, progress, self._clock())
            tx.after_commit(lambda: self._signals.notify(FLEET_CHANGED))

    async def receipt(
        self, device: Device, receipt: Receipt, *, signed: bytes, signature: bytes
    ) -> None:
        """Store a receipt once, and settle it in its rollout.

        Raises InvalidInputError if the device did not sign it, or if its outcome is not final.
        """
        _verify(device, signed, signature)
        if not receipt.outcome.final:
            raise InvalidInputError(
                f"the outcome of a receipt must be final, not {receipt.outcome}",
                advice="Update the agent.",
            )
        now = self._clock()
        async with self._database.write() as tx:
            new = await receipts.add(
                tx, device.id, receipt, signed=signed, signature=signature, now=now
            )
            # A repeated receipt was acknowledged before, or its acknowledgement was lost.
            if not new:
                return
            # The receipt is also the last status: agents need not send both.
            await sessions.report_progress(tx, device.id, _end(receipt), now)
            await self._rollouts.settle(tx, device.id, update_result(receipt), now)
            tx.after_commit(lambda: self._signals.notify(FLEET_CHANGED))
        self._metrics.receipts.labels(receipt.outcome).inc()
        log.info(
            "receipt_stored device=%s generation=%d release=%s outcome=%s reason=%s",
            device.id,
            receipt.generation,
            ascii(receipt.release),
            receipt.outcome,
            ascii(receipt.reason),
        )

    async def windows(self, device: Device, boot_id: str, windows: Sequence[Window]) -> int:
        """Store the new, valid windows; return the highest sequence, which acknowledges them all.

        A window with impossible figures is dropped and acknowledged: the agent would otherwise
        send it again without end.
        """
        valid = []
        for window in windows:
            try:
                check_window(window)
            except InvalidInputError as error:
                log.warning("window_dropped device=%s reason=%s", device.id, ascii(str(error)))
            else:
                valid.append(window)
        if valid:
            async with self._database.write() as tx:
                await telemetry.add(tx, device.id, boot_id, valid)
            self._metrics.windows.inc(len(valid))
        return max((window.sequence for window in windows), default=0)

    async def touch(self, device_ids: Sequence[str]) -> None:
        """Record that the streams of these devices are open."""
        if device_ids:
            async with self._database.write() as tx:
                await sessions.touch(tx, device_ids, self._clock())

    async def expire(self, *, everyone: bool = False) -> None:
        """Forget streams whose end was not recorded.

        ``everyone``: forget all of them. Right at the start of the only process of a server.
        """
        now = self._clock()
        before = now + timedelta(days=1) if everyone else now - timedelta(seconds=SILENT_SECONDS)
        async with self._database.write() as tx:
            gone = await sessions.expire(tx, before)
        if gone:
            log.info("sessions_expired count=%d", gone)
            self._signals.notify(FLEET_CHANGED)

    async def forget_windows(self, retention: timedelta) -> None:
        async with self._database.write() as tx:
            count = await telemetry.forget(tx, self._clock() - retention)
        log.info("windows_forgotten count=%d", count)


def _verify(device: Device, signed: bytes, signature: bytes) -> None:
    key = load_der_public_key(device.public_key)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError(f"device {device.id} has a key of type {type(key).__name__}, not P-256")
    try:
        key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise InvalidInputError(
            f"the receipt is not signed by the key of {device.name!r}",
            advice="Enrol the box again: its key does not match its certificate.",
        ) from None


def _end(receipt: Receipt) -> Progress:
    return Progress(
        generation=receipt.generation,
        state=receipt.outcome,
        detail=receipt.detail or receipt.reason,
        bytes_done=receipt.bytes_downloaded,
        bytes_total=receipt.bytes_downloaded,
        current_release=receipt.current_release,
        last_good_release=receipt.last_good_release,
    )


def update_result(receipt: Receipt) -> UpdateResult:
    """Return what the rollout needs of a receipt."""
    return UpdateResult(
        generation=receipt.generation,
        committed=receipt.outcome is UpdateState.COMMITTED,
        detail=": ".join(part for part in (receipt.reason, receipt.detail) if part),
        bytes_downloaded=receipt.bytes_downloaded,
        switch_seconds=receipt.switch_seconds,
        interrupted=receipt.reason in DEVICE_FAULTS,
    )
