"""Identification of a device by the certificate of its connection, on every call."""

import contextlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509

from controlplane.errors import ForbiddenError, StorageFullError, UnauthenticatedError
from controlplane.services.devices.restored import adopt_certificate, is_unrecorded_renewal
from controlplane.services.devices.states import DeviceStateService, check_active
from controlplane.services.keys.authority_files import AuthorityFiles
from controlplane.services.keys.server_keys import common_name, serial_of
from controlplane.store import devices
from controlplane.store.database import Database
from controlplane.store.devices import Device

# A box may have calls in progress with its old certificate while it uses the new one already. An
# old certificate that is used later than this proves that there is a second box.
CHANGEOVER: Final = timedelta(minutes=10)


class IdentificationService:
    """Maps certificates to devices, and detects copied ones."""

    def __init__(
        self,
        database: Database,
        authorities: AuthorityFiles,
        states: DeviceStateService,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._authorities = authorities
        self._states = states
        self._clock = clock

    async def identify(self, certificate_pem: bytes) -> Device:
        """Return the device of a certificate that TLS has verified.

        Raises UnauthenticatedError if no device has it, ForbiddenError if it was replaced or its
        device is not active.
        """
        certificate = self._check_issuer(certificate_pem)
        serial = serial_of(certificate)
        async with self._database.read() as tx:
            device = await devices.find(tx, common_name(certificate))
        if device is None:
            raise UnauthenticatedError(
                f"certificate {serial} belongs to no device of this fleet",
                advice="Enrol the box again.",
            )
        check_active(device)
        if serial not in {device.certificate_serial, device.previous_serial}:
            if is_unrecorded_renewal(device, certificate):
                async with self._database.write() as tx:
                    await adopt_certificate(
                        tx, device, certificate, self._authority_of(certificate), self._clock()
                    )
                return device
            if self._is_replayed(device):
                await self._states.quarantine_clone(device, serial)
            raise ForbiddenError(
                f"certificate {serial} of {device.name!r} was replaced by a newer one",
                advice="If the box has no newer one, its disk may have been copied: enrol it anew.",
            )
        if serial == device.certificate_serial and device.previous_serial is not None:
            # A full disk must not lock the device out; its next call records the use.
            with contextlib.suppress(StorageFullError):
                await self._record_use(device.id, serial)
        return device

    async def check(self, device_id: str, certificate_pem: bytes) -> None:
        """Raise if a device, or the issuer of its certificate, is not accepted any more.

        Long calls repeat this check, because TLS checks the issuer only at the handshake.
        """
        self._check_issuer(certificate_pem)
        await self._states.check(device_id)

    async def _record_use(self, device_id: str, serial: str) -> None:
        async with self._database.write() as tx:
            await devices.forget_previous_serial(tx, device_id, shown=serial, now=self._clock())

    def _authority_of(self, certificate: x509.Certificate) -> str:
        authority = self._authorities.issuer(certificate)
        return authority.sha256 if authority else ""

    def _check_issuer(self, certificate_pem: bytes) -> x509.Certificate:
        """Raise UnauthenticatedError unless a current authority issued the certificate."""
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
        except ValueError as error:
            raise UnauthenticatedError(
                "there is no device certificate on this connection",
                advice="Connect with the certificate that `flotilla-agent enroll` received.",
            ) from error
        if self._authorities.issuer(certificate) is None:
            raise UnauthenticatedError(
                f"the authority of certificate {serial_of(certificate)} was retired",
                advice="An agent with a newer certificate reconnects with that one. Otherwise run "
                "`flotilla-agent enroll --recover` with a token from `flotilla token create`.",
            )
        return certificate

    def _is_replayed(self, device: Device) -> bool:
        """Return whether an old certificate was used long after its successor was.

        False while a renewal is open (``previous_serial`` is set): the server then does not know
        which of the issued certificates has reached the box.
        """
        seen = device.certificate_seen_at
        if device.previous_serial is not None or seen is None:
            return False
        return self._clock() - seen > CHANGEOVER
