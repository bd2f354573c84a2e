"""A certificate authority for tests: real keys, real certificates, real TLS."""

import ipaddress
from datetime import UTC, datetime, timedelta

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_PEM = serialization.Encoding.PEM


class Authority:
    """A certificate authority for servers and devices."""

    def __init__(self, name: str = "test authority") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self.name, self.key.public_key(), timedelta(days=1))
        self.certificate = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        ).sign(self.key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(_PEM)

    @property
    def digest(self) -> str:
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    def _builder(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        life: timedelta,
        starts_in: timedelta = timedelta(minutes=-1),
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + starts_in)
            .not_valid_after(now + life)
        )

    def server(
        self,
        *names: str,
        life: timedelta = timedelta(hours=1),
        starts_in: timedelta = timedelta(minutes=-1),
    ) -> tuple[bytes, bytes]:
        """Return key and certificate (PEM) of a server with these names or addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        builder = self._builder(subject, key.public_key(), life, starts_in)
        certificate = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
        ).sign(self.key, hashes.SHA256())
        return (
            key.private_bytes(
                _PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            certificate.public_bytes(_PEM),
        )

    def device(
        self,
        csr_pem: bytes,
        life: timedelta = timedelta(hours=1),
        starts_in: timedelta = timedelta(minutes=-1),
    ) -> bytes:
        """Return a device certificate (PEM) for the key of a signing request."""
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        builder = self._builder(request.subject, key, life, starts_in)
        certificate = builder.sign(self.key, hashes.SHA256())
        return certificate.public_bytes(_PEM)

    def server_credentials(self, *names: str, mutual: bool = False) -> grpc.ServerCredentials:
        """Return credentials for a grpc.aio server; ``mutual`` requires client certificates."""
        return grpc.ssl_server_credentials(
            [self.server(*names)],
            root_certificates=self.pem if mutual else None,
            require_client_auth=mutual,
        )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
