"""The server's own keys, in its data directory: certificate authorities, TLS, online TUF roles.

All private keys are made here on the first start, with mode 0600, and never leave the directory.
The authority signs server and device certificates. All certificate keys are P-256, the curve that
gRPC's handshake does fastest.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controlplane.errors import InvalidInputError
from controlplane.services.keys.authority_files import AuthorityFiles
from controlplane.services.keys.director_keys import DirectorKeys
from controlplane.services.keys.key_files import key_pem, load_or_make_key
from controlplane.services.keys.online_keys import OnlineKeys
from controlplane.services.keys.private_files import write_private

_DNS_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")
_PEM: Final = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """A TLS key and its certificate chain, as PEM."""

    key_pem: bytes
    chain_pem: bytes


class ServerKeys:
    """Every private key of the server."""

    def __init__(
        self, directory: Path, names: Sequence[str], lifetime: timedelta, now: datetime
    ) -> None:
        """Load the keys and make missing ones.

        ``names`` and ``lifetime`` are those of the server's own certificate.
        """
        self._directory = directory
        self._names = tuple(names)
        self._lifetime = lifetime
        directory.mkdir(parents=True, exist_ok=True)
        # mkdir does not change a folder that exists, and the umask narrows the mode of a new one.
        directory.chmod(0o700)
        self.authorities = AuthorityFiles(directory, now)
        self.online = OnlineKeys(directory)
        self.director = DirectorKeys(directory, now)
        self.tls: TlsIdentity
        self.renew(now)

    def renew(self, now: datetime) -> bool:
        """Make a new server certificate if needed and return whether one was made.

        It is needed in the last third of the old one's lifetime, and if its names or its authority
        have changed.
        """
        path = self._directory / "server.pem"
        key = load_or_make_key(self._directory / "server.key")
        if path.exists() and self._is_current(path.read_bytes(), key, now):
            self.tls = TlsIdentity(key_pem(key), path.read_bytes())
            return False
        authority = self.authorities.server_authority
        certificate = authority.issue(
            key.public_key(),
            common_name=self._names[0][:64],
            usage=ExtendedKeyUsageOID.SERVER_AUTH,
            alternatives=[_general_name(name) for name in self._names],
            now=now,
            lifetime=self._lifetime,
        )
        chain = certificate.public_bytes(_PEM) + authority.pem
        write_private(path, chain)
        self.tls = TlsIdentity(key_pem(key), chain)
        return True

    def issue_device(
        self,
        public_key: ec.EllipticCurvePublicKey,
        device_id: str,
        now: datetime,
        lifetime: timedelta,
    ) -> x509.Certificate:
        """Issue a device's certificate, whose common name is the device's id."""
        return self.authorities.current.issue(
            public_key,
            common_name=device_id,
            usage=ExtendedKeyUsageOID.CLIENT_AUTH,
            now=now,
            lifetime=lifetime,
        )

    def _is_current(self, chain: bytes, key: ec.EllipticCurvePrivateKey, now: datetime) -> bool:
        try:
            certificate = x509.load_pem_x509_certificates(chain)[0]
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            certificate.verify_directly_issued_by(self.authorities.server_authority.certificate)
        except (ValueError, InvalidSignature, x509.ExtensionNotFound):
            return False
        # Renewed in the last third of its life, so that an outage of days does not expire it.
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return (
            begin <= now < end - (end - begin) / 3
            and certificate.public_key() == key.public_key()
            and set(names.value) == {_general_name(name) for name in self._names}
        )


def serial_of(certificate: x509.Certificate) -> str:
    return f"{certificate.serial_number:x}"


def common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not _DNS_NAME.fullmatch(name):
        raise InvalidInputError(
            f"{name[:80]!r} is neither a host name nor an IP address",
            advice="Give --hostname the names that boxes reach this server by.",
        )
    return x509.DNSName(name)
