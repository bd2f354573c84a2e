"""Knowing a device by the certificate of its connection, on every call."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509

from controlplane.errors import ForbiddenError, UnauthenticatedError
from controlplane.services.devices.states import DeviceStateService, check_active
from controlplane.services.keys.authority_files import AuthorityFiles
from controlplane.services.keys.server_keys import common_name, serial_of
from controlplane.store import devices
from controlplane.store.database import Database
from controlplane.store.devices import Device

# A box may have calls under way with its old certificate while it uses the new one already; only
# an old one that still comes after so long shows that there is a second box.
CHANGEOVER: Final = timedelta(minutes=10)


class IdentificationService:
    """Certificates to devices, and who is found out to be none."""

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
        """The device that a certificate, which TLS has verified, belongs to.

        Raises UnauthenticatedError when it is nobody's, ForbiddenError when it was replaced or its
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
            if self._came_back(device):
                await self._states.quarantine_clone(device, serial)
            raise ForbiddenError(
                f"certificate {serial} of {device.name!r} was replaced by a newer one",
                advice="If the box has no newer one, its disk may have been copied: enrol it anew.",
            )
        if serial == device.certificate_serial and device.previous_serial is not None:
            async with self._database.write() as tx:
                await devices.forget_previous_serial(tx, device.id, shown=serial, now=self._clock())
        return device

    async def check(self, device_id: str, certificate_pem: bytes) -> None:
        """Raises once a device, or who issued its certificate, is not accepted any more.

        For what outlasts a call's beginning; TLS asks who issued it once, at the handshake.
        """
        self._check_issuer(certificate_pem)
        await self._states.check(device_id)

    def _check_issuer(self, certificate_pem: bytes) -> x509.Certificate:
        """UnauthenticatedError unless an authority that is not retired issued the certificate."""
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
        except ValueError as error:
            raise UnauthenticatedError(
                "there is no device certificate on this connection",
                advice="Connect with the certificate that `flotilla-agent enroll` got.",
            ) from error
        if self._authorities.issuer(certificate) is None:
            raise UnauthenticatedError(
                f"certificate {serial_of(certificate)} is of an authority that was retired",
                advice="An agent that has a newer one comes back with that; for a box that has "
                "none, `flotilla-agent enroll --recover` with a token of `flotilla token create`.",
            )
        return certificate

    def _came_back(self, device: Device) -> bool:
        """An old certificate was used although its successor is in use, and has been for a while.

        Never while a new one is on its way to the box: which of those that were issued it has is
        not known then.
        """
        seen = device.certificate_seen_at
        if device.previous_serial is not None or seen is None:
            return False
        return self._clock() - seen > CHANGEOVER
