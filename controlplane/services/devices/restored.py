"""Devices that are ahead of the database, because it was restored from a backup.

A device keeps the highest generation that it accepted and refuses lower ones, and it may have
renewed its certificate since the backup. The server continues above both: it takes over what the
device proves, warns, and records it in the audit log. It does not change what the device runs.
"""

import logging
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from controlplane.services.keys.authority import BACKDATED
from controlplane.services.keys.server_keys import serial_of
from controlplane.store import assignments, audit, devices, releases
from controlplane.store.assignments import Assignment, Change
from controlplane.store.database import Transaction
from controlplane.store.devices import Device
from controlplane.store.sessions import Greeting

log = logging.getLogger(__name__)

# Generations above this leave no room for assignments below the agents' limit of 2^32.
MAX_ADOPTED_GENERATION: Final = 1 << 31


async def adopt_generation(
    tx: Transaction, device: Device, greeting: Greeting, now: datetime
) -> None:
    """Raise the generation of a device's assignment to the one that it reports, if that is higher.

    The release becomes the one that the device runs, if it is published here. The next assignment
    then has a generation, and so director metadata, above everything that the device has accepted.
    """
    if greeting.generation == 0:
        return
    assignment, _ = await assignments.get(tx, device.id)
    if greeting.generation <= assignment.generation:
        return
    if greeting.generation > MAX_ADOPTED_GENERATION:
        # Only a broken or hostile device gets there; its own assignments end, no other device's.
        log.warning(
            "generation_refused device=%s reported=%d maximum=%d",
            device.id,
            greeting.generation,
            MAX_ADOPTED_GENERATION,
        )
        return
    digests = await releases.digests(tx, {greeting.current_release})
    release, digest = assignment.release, assignment.manifest_sha256
    if greeting.current_release in digests:
        release, digest = greeting.current_release, digests[greeting.current_release]
    adopted = Assignment(greeting.generation, release, digest)
    await assignments.replace(tx, [Change(device.id, assignment.generation, adopted)], now)
    await audit.append(
        tx,
        at=now,
        actor="server",
        action="device.adopt-generation",
        subject=device.id,
        detail=f"{device.name}: generation {assignment.generation} -> {greeting.generation}",
    )
    log.warning(
        "device_ahead device=%s name=%s stored_generation=%d reported_generation=%d running=%s "
        "cause=restored_from_backup",
        device.id,
        device.name,
        assignment.generation,
        greeting.generation,
        ascii(greeting.current_release),
    )


def is_unrecorded_renewal(device: Device, certificate: x509.Certificate) -> bool:
    """Return whether a certificate was issued after the last one that the database knows.

    The authority signs certificates only together with their record, so the record was lost. A
    replaced certificate is always older than the first use of its successor, which is what
    ``certificate_seen_at`` holds; so a copied disk is still detected. While a renewal is open
    (``previous_serial``), the order of the issued certificates is unknown, and none is accepted.
    """
    if device.previous_serial is not None:
        return False
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    issued_at = certificate.not_valid_before_utc + BACKDATED
    return spki == device.public_key and issued_at > (
        device.certificate_seen_at or device.enrolled_at
    )


async def adopt_certificate(
    tx: Transaction,
    device: Device,
    certificate: x509.Certificate,
    authority_sha256: str,
    now: datetime,
) -> None:
    """Record a certificate whose record was lost as the device's current one."""
    serial = serial_of(certificate)
    await devices.set_certificate(
        tx,
        device.id,
        serial=serial,
        previous=device.certificate_serial,
        authority=authority_sha256,
        expires_at=certificate.not_valid_after_utc,
    )
    # The device uses it now, so the one before it is replaced.
    await devices.forget_previous_serial(tx, device.id, shown=serial, now=now)
    await audit.append(
        tx,
        at=now,
        actor="server",
        action="device.adopt-certificate",
        subject=device.id,
        detail=f"{device.name}: certificate {device.certificate_serial} -> {serial}",
    )
    log.warning(
        "certificate_ahead device=%s name=%s stored=%s presented=%s cause=restored_from_backup",
        device.id,
        device.name,
        device.certificate_serial,
        serial,
    )
