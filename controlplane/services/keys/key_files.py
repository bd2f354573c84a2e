"""P-256 keys in the server's data directory."""

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controlplane.errors import DataDirectoryError
from controlplane.services.keys.private_files import read_or_make


def load_or_make_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Load a key, or make and store a new one; DataDirectoryError if the file is damaged."""
    pem = read_or_make(path, lambda: key_pem(ec.generate_private_key(ec.SECP256R1())))
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise _damaged(path) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _damaged(path)
    return key


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _damaged(path: Path) -> DataDirectoryError:
    return DataDirectoryError(
        f"{path} is not a P-256 key",
        advice="Restore it from your backup; with a new one, every box must enrol again.",
    )
