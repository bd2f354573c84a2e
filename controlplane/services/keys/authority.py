"""A certificate authority with a P-256 key: the curve that gRPC's handshake does fastest."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from artifact.trust.authority import digest

AUTHORITY_LIFETIME: Final = timedelta(days=3650)
# Lifetime of the certificate that vouches for the previous authority, signed per enrolment.
VOUCHED_LIFETIME: Final = timedelta(days=1)
# A new certificate is valid at once on boxes whose clock is slightly behind.
BACKDATED: Final = timedelta(minutes=5)
_PEM: Final = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class Authority:
    """A key and a certificate that sign certificates of the server and of devices."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(_PEM)

    @property
    def sha256(self) -> str:
        """SHA-256 of the DER in hex, which join tokens contain."""
        return digest(self.certificate)

    def issue(
        self,
        public_key: ec.EllipticCurvePublicKey,
        *,
        common_name: str,
        usage: x509.ObjectIdentifier,
        alternatives: Sequence[x509.GeneralName] = (),
        now: datetime,
        lifetime: timedelta,
    ) -> x509.Certificate:
        """Issue a certificate that cannot sign others."""
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = (
            _builder(public_key, _name(common_name), self.certificate.subject, now, lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(issuer, critical=False)
        )
        if alternatives:
            builder = builder.add_extension(
                x509.SubjectAlternativeName(alternatives), critical=False
            )
        return builder.sign(self.key, hashes.SHA256())

    def endorse(self, successor: "Authority", now: datetime) -> bytes:
        """Return the PEM by which those who trust this authority accept its successor.

        See artifact.trust.authority.
        """
        builder = self._naming(successor, now, AUTHORITY_LIFETIME)
        return _authority(builder, successor.key, by=self.key).public_bytes(_PEM)

    def vouch_for(self, predecessor: "Authority", now: datetime) -> bytes:
        """Return the PEM by which newcomers to this authority also trust its predecessor.

        It is valid for VOUCHED_LIFETIME.
        """
        constraints = x509.BasicConstraints(ca=False, path_length=None)
        builder = self._naming(predecessor, now, VOUCHED_LIFETIME)
        builder = builder.add_extension(constraints, critical=True)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(_PEM)

    def _naming(
        self, other: "Authority", now: datetime, lifetime: timedelta
    ) -> x509.CertificateBuilder:
        end = min(now + lifetime, self.certificate.not_valid_after_utc)
        subject, issuer = other.certificate.subject, self.certificate.subject
        return _builder(other.key.public_key(), subject, issuer, now, end - now)


def new_authority_certificate(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """Make the self-signed certificate of a new authority."""
    # The random digits tell apart the authorities of two servers that one machine trusts.
    name = _name(f"Flotilla CA {secrets.token_hex(4)}")
    return _authority(_builder(key.public_key(), name, name, now, AUTHORITY_LIFETIME), key, by=key)


def _authority(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePrivateKey,
    *,
    by: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    """Sign an authority certificate for ``key``: it may sign certificates, but no authorities."""
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(by, hashes.SHA256())
    )


def _builder(
    public_key: ec.EllipticCurvePublicKey,
    subject: x509.Name,
    issuer: x509.Name,
    now: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + lifetime)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
