"""The device's private key, which never leaves the box, its certificate and trust anchors."""

import hashlib
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.config import DataDir
from agent.errors import IdentityError
from agent.identity.credentials import RECOVER, Credentials
from agent.storage.atomic_file import write_file
from artifact.errors import UntrustedError
from artifact.join_token import JoinToken
from artifact.trust.authority import begin, digest, issuer_of, newest
from artifact.trust.statements import Authorities

_ENROLL_AGAIN = "Enrol the box again into an empty directory."


@dataclass(frozen=True)
class Identity:
    """The device key and certificate, and the authorities that sign servers and devices.

    ``ca_pem`` starts with the authority that issues certificates now (artifact.trust.authority).
    """

    key: ec.EllipticCurvePrivateKey
    certificate_pem: bytes
    ca_pem: bytes

    @property
    def credentials(self) -> Credentials:
        """The identity as plain data."""
        certificate = _load_certificate(self.certificate_pem)
        authority = newest(self.ca_pem)
        return Credentials(
            key_pem=_private_pem(self.key),
            certificate_pem=self.certificate_pem,
            ca_pem=self.ca_pem,
            valid_from=certificate.not_valid_before_utc,
            valid_until=certificate.not_valid_after_utc,
            authority_sha256=digest(authority),
            authority_valid_until=authority.not_valid_after_utc,
            is_of_newest_authority=issuer_of(certificate, self.ca_pem) == authority,
        )


def make_or_load_key(data_dir: DataDir) -> ec.EllipticCurvePrivateKey:
    """Return the box's P-256 key, made on the first call.

    The server recognises a repeated enrolment, after a lost answer, by the key.
    """
    try:
        pem = data_dir.key.read_bytes()
    except FileNotFoundError:
        # P-256: gRPC's BoringSSL, TPMs and the server's checks all support it.
        key = ec.generate_private_key(ec.SECP256R1())
        write_file(data_dir.key, _private_pem(key))
        return key
    return _load_key(pem)


def load_key(data_dir: DataDir) -> ec.EllipticCurvePrivateKey:
    """Load the key of a box that was enrolled; IdentityError."""
    try:
        return _load_key(data_dir.key.read_bytes())
    except OSError as error:
        raise IdentityError(
            f"the box's key cannot be read: {error}", advice=_ENROLL_AGAIN
        ) from error


def load_identity(data_dir: DataDir) -> Identity:
    """Load the identity of an enrolled box; IdentityError if parts are missing or do not match."""
    key = load_key(data_dir)
    try:
        certificate_pem = data_dir.certificate.read_bytes()
        ca_pem = data_dir.ca.read_bytes()
    except OSError as error:
        raise IdentityError(
            f"the box's identity cannot be read: {error}", advice=RECOVER
        ) from error
    check_certificate(certificate_pem, key, ca_pem)
    return Identity(key, certificate_pem, ca_pem)


def save_certificate(data_dir: DataDir, certificate_pem: bytes, ca_pem: bytes) -> None:
    """Replace the certificate and the authorities; after a crash in between they still match."""
    trusted = data_dir.ca.read_bytes() if data_dir.ca.exists() else ca_pem
    if trusted == ca_pem:
        write_file(data_dir.certificate, certificate_pem)
        return
    # Trust both sets of authorities while the certificate is replaced: at every step the one on the
    # disk is then signed by a trusted authority.
    write_file(data_dir.ca, ca_pem + trusted)
    write_file(data_dir.certificate, certificate_pem)
    write_file(data_dir.ca, ca_pem)


def sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """Sign with ECDSA P-256 over SHA-256; DER."""
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def signing_request(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    """Build a PKCS#10 request, PEM; the server uses only its key."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def check_certificate(
    certificate_pem: bytes, key: ec.EllipticCurvePrivateKey, ca_pem: bytes
) -> None:
    """Raise IdentityError unless the certificate is for ``key`` and signed by one of ``ca_pem``."""
    certificate = _load_certificate(certificate_pem)
    if certificate.public_key() != key.public_key():
        raise IdentityError("the device certificate is for another key", advice=_ENROLL_AGAIN)
    _check_issued(certificate, ca_pem, "the device certificate")


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """Trust anchors from a server: certificate authorities, and both repositories' first roots."""

    authorities: Authorities
    image_root: bytes
    director_root: bytes


def check_trust_bundle(bundle: TrustBundle, token: JoinToken) -> bytes:
    """Return the authorities to trust, newest first; IdentityError if the token names others.

    The token names both roots by SHA-256 and one of the authorities, which endorses the other.
    """
    for name, data, expected in (
        ("image root", bundle.image_root, token.root),
        ("director root", bundle.director_root, token.director),
    ):
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise IdentityError(
                f"the server's {name} has the SHA-256 {found}, the token names {expected}",
                advice="The token is from another server, or the connection is intercepted: check "
                "the address, or create a new token.",
            )
    try:
        return begin(token.ca, bundle.authorities)
    except UntrustedError as error:
        raise IdentityError(str(error), advice=error.advice) from error


def check_server_name(leaf_pem: bytes, host: str) -> None:
    """Raise IdentityError unless the server's certificate names ``host``."""
    # The common name does not count: gRPC ignores it too (RFC 6125).
    names = _names(_load_certificate(leaf_pem))
    if host not in names:
        raise IdentityError(
            f"the server's certificate is not for {host!r}",
            advice=f"Use one of the names it is for: {', '.join(names) or 'none'}.",
        )


def check_server_issuer(leaf_pem: bytes, ca_pem: bytes) -> None:
    """Raise IdentityError unless one of the authorities signed the server's certificate."""
    _check_issued(_load_certificate(leaf_pem), ca_pem, "the server's certificate")


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [
        address
        for address in extension.value.get_values_for_type(x509.IPAddress)
        if isinstance(address, ipaddress.IPv4Address | ipaddress.IPv6Address)
    ]
    return [*extension.value.get_values_for_type(x509.DNSName), *map(str, addresses)]


def _check_issued(certificate: x509.Certificate, ca_pem: bytes, name: str) -> None:
    try:
        if issuer_of(certificate, ca_pem) is not None:
            return
        trusted = digest(newest(ca_pem))
    except UntrustedError as error:
        raise IdentityError(str(error), advice=RECOVER) from error
    raise IdentityError(
        f"{name} is not signed by the authority {trusted}",
        advice="Check that the address leads to the server that the token is from.",
    )


def _load_certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise IdentityError(
            f"a certificate cannot be read: {error}", advice=_ENROLL_AGAIN
        ) from None


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise IdentityError(f"the key cannot be read: {error}", advice=_ENROLL_AGAIN) from None
    # Signing below is ECDSA only; another kind of key could not serve as the device's.
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError("the key is not an elliptic-curve key", advice=_ENROLL_AGAIN)
    return key


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
