"""Enrolment: boxes become devices, and devices renew their certificates."""

import hashlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from artifact.device_facts import DeviceFacts, hardware_class
from artifact.trust.statements import Authorities
from controlplane.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
)
from controlplane.services.devices.join_tokens import (
    FIRST_ROOT,
    check_admits,
    merge_labels,
    usable_token,
)
from controlplane.services.devices.states import check_active
from controlplane.services.keys.server_keys import ServerKeys, serial_of
from controlplane.store import audit, devices, join_tokens, trust_metadata
from controlplane.store.database import Database, Transaction
from controlplane.store.devices import Device
from controlplane.store.ids import new_id
from controlplane.store.join_tokens import JoinToken

log = logging.getLogger(__name__)

DEVICE_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
MAX_CSR_BYTES: Final = 16 << 10


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """Everything that a join token names by digest: authorities and first roots."""

    authorities: Authorities
    image_root: bytes
    director_root: bytes


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A new device and its certificate."""

    device_id: str
    certificate_pem: bytes


class EnrollService:
    """Issues certificates: for a join token, and for a certificate that is about to expire."""

    def __init__(
        self,
        database: Database,
        keys: ServerKeys,
        clock: Callable[[], datetime],
        *,
        certificate_lifetime: timedelta,
    ) -> None:
        self._database = database
        self._keys = keys
        self._clock = clock
        self._lifetime = certificate_lifetime

    async def trust_bundle(self) -> TrustBundle:
        """Return the trust bundle; ConflictError before the image repository has a root."""
        async with self._database.read() as tx:
            root = await trust_metadata.file(tx, FIRST_ROOT)
        if root is None:
            raise ConflictError(
                "this server has no image repository yet",
                advice="Its operator must run `flotilla keys init` first.",
            )
        director = self._keys.director
        offered = self._keys.authorities.offered_to_newcomers(self._clock())
        return TrustBundle(offered, root, director.first_root)

    def authorities(self) -> Authorities:
        """Return the certificate authorities that devices should trust now."""
        return self._keys.authorities.offered

    async def enroll(
        self,
        *,
        secret: str,
        csr_pem: bytes,
        name: str,
        labels: dict[str, str],
        facts: DeviceFacts,
        recover: str = "",
    ) -> Enrolment:
        """Make a device of this name, with a certificate for the key of the signing request.

        A key that belongs to a device already gets that device again: an answer may have been
        lost, or the box may have been off until its certificate expired. ``recover`` is the id of
        the device that the box was; then no other device is made. Raises UnauthenticatedError or
        JoinRefusedError for the token, NotFoundError if there is no device to recover,
        ForbiddenError if that device is not active, InvalidInputError for any other argument.
        """
        if not DEVICE_NAME.fullmatch(name):
            raise InvalidInputError(
                f"{name[:80]!r} is not a device name",
                advice="Use 1 to 63 lower-case letters, digits and dashes.",
            )
        public_key = _requested_key(csr_pem)
        spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        key_sha256 = hashlib.sha256(spki).hexdigest()
        now = self._clock()
        # One transaction: the token's use, the device and the audit event exist together or not at
        # all. The certificate is signed inside it; a signature without a record is never sent.
        async with self._database.write() as tx:
            token = await usable_token(tx, secret, now)
            # A repeated request has the same key: its use is free, since the answer may be lost.
            used = await join_tokens.device_of_use(tx, token.id, key_sha256) is not None
            known = await devices.find_by_key(tx, spki)
            if recover and (known is None or known.id != recover):
                raise NotFoundError(
                    f"no device {recover[:80]!r} has this key",
                    advice="It was retired: enrol the box anew, into an empty data directory.",
                )
            check_admits(token, used=used, known=known is not None)
            if known is not None:
                enrolment = await self._reissue(tx, known, name, public_key, now)
                if not used:
                    await join_tokens.use(tx, token.id, key_sha256, known.id)
                    await _note(tx, token, "device.recover", known, now)
                return enrolment
            device_id = new_id(now)
            certificate = self._keys.issue_device(public_key, device_id, now, self._lifetime)
            device = Device(
                id=device_id,
                name=name,
                labels=merge_labels(labels, token.labels),
                enrolled_at=now,
                public_key=spki,
                certificate_serial=serial_of(certificate),
                certificate_expires_at=certificate.not_valid_after_utc,
                certificate_authority=self._keys.authorities.current.sha256,
                hardware_class=hardware_class(facts),
                facts=facts,
            )
            await devices.add(tx, device)
            await join_tokens.use(tx, token.id, key_sha256, device_id)
            await _note(tx, token, "device.enroll", device, now)
        log.info("device_enrolled device=%s name=%s token=%s", device_id, name, token.id)
        return Enrolment(device_id, certificate.public_bytes(Encoding.PEM))

    async def _reissue(
        self,
        tx: Transaction,
        device: Device,
        name: str,
        public_key: ec.EllipticCurvePublicKey,
        now: datetime,
    ) -> Enrolment:
        check_active(device)
        if device.name != name:
            raise InvalidInputError(
                f"this key has already joined as {device.name!r}, not {name!r}",
                advice=f"Enrol with --name {device.name}, or with an empty data directory.",
            )
        log.info("certificate_issued_again device=%s name=%s", device.id, device.name)
        return Enrolment(device.id, await self._issue(tx, device, public_key, now))

    async def renew(self, device: Device, csr_pem: bytes) -> bytes:
        """Issue a new certificate for the same key; the old one works until the new one does."""
        public_key = _requested_key(csr_pem)
        spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if spki != device.public_key:
            raise InvalidInputError(
                f"the signing request is for another key than that of {device.name!r}",
                advice="Renew with the key that the box enrolled with.",
            )
        async with self._database.write() as tx:
            fresh = await devices.get(tx, device.id)
            check_active(fresh)
            certificate_pem = await self._issue(tx, fresh, public_key, self._clock())
        log.info("certificate_renewed device=%s", device.id)
        return certificate_pem

    async def _issue(
        self,
        tx: Transaction,
        device: Device,
        public_key: ec.EllipticCurvePublicKey,
        now: datetime,
    ) -> bytes:
        certificate = self._keys.issue_device(public_key, device.id, now, self._lifetime)
        # If two answers in a row are lost, the box still has the certificate that it last used.
        # So the previous serial stays the last one seen, however often a new one is issued.
        last_used = device.previous_serial or device.certificate_serial
        await devices.set_certificate(
            tx,
            device.id,
            serial=serial_of(certificate),
            previous=last_used,
            authority=self._keys.authorities.current.sha256,
            expires_at=certificate.not_valid_after_utc,
        )
        return certificate.public_bytes(Encoding.PEM)


async def _note(
    tx: Transaction, token: JoinToken, action: str, device: Device, now: datetime
) -> None:
    await audit.append(
        tx,
        at=now,
        actor=f"join-token:{token.id}",
        action=action,
        subject=device.id,
        detail=device.name,
    )


def _requested_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """Return the key of a signing request that its own key signed; its other fields are ignored."""
    advice = "Make it with `flotilla-agent enroll`: PKCS#10, PEM, P-256."
    if len(csr_pem) > MAX_CSR_BYTES:
        raise InvalidInputError(
            f"the signing request is {len(csr_pem):,} bytes; the maximum is {MAX_CSR_BYTES:,}",
            advice=advice,
        )
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidInputError(
            f"the signing request cannot be read: {error}", advice=advice
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInputError("the signing request's key is not P-256", advice=advice)
    if not signed:
        raise InvalidInputError("the signing request is not signed by its own key", advice=advice)
    return key
