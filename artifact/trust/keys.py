"""Signing keys: Ed25519, as python-tuf's signers; private ones as PKCS#8 PEM.

Offline keys (root, targets, publishers) lie on the operator's side in files that only their owner
can read, encrypted with a passphrase. Online keys (snapshot, timestamp) are the server's: it keeps
their PEM itself.
"""

import json
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey

from artifact.errors import KeyFileError, UntrustedError
from artifact.manifest import canonical_json
from artifact.trust.pkcs8 import encrypt_private_key

MIN_PASSPHRASE_CHARACTERS: Final = 8

_MAX_KEY_FILE_BYTES: Final = 64 << 10
_MAX_KEY_JSON_BYTES: Final = 4096


def generate_key() -> CryptoSigner:
    """A new Ed25519 key."""
    return CryptoSigner.generate_ed25519()


def write_key(path: Path, signer: CryptoSigner, passphrase: str) -> None:
    """Store an offline key, encrypted, readable by its owner alone; never over another file."""
    if len(passphrase) < MIN_PASSPHRASE_CHARACTERS:
        raise KeyFileError(
            f"the passphrase has {len(passphrase)} characters, fewer than "
            f"{MIN_PASSPHRASE_CHARACTERS}",
            advice="Choose a longer one: it is all that protects the key file where it lies.",
        )
    private_key = load_pem_private_key(signer.private_bytes, None)
    der = private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    pem = encrypt_private_key(der, passphrase.encode())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise KeyFileError(
            f"{path} exists already", advice="Keys are never overwritten: move it away first."
        ) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())


def load_key(path: Path, passphrase: str) -> CryptoSigner:
    """Read an offline key; KeyFileError when it is missing, exposed, damaged or locked."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            pem = file.read(_MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise KeyFileError(
            f"the key file {path} cannot be read: {error.strerror}",
            advice="Name the folder that `flotilla keys init` filled with --keys.",
        ) from error
    if mode & 0o077:
        raise KeyFileError(
            f"the key file {path} is open to others (mode {mode & 0o777:o})",
            advice=f"Close it with `chmod 600 {path}`, and replace the key if others had access.",
        )
    return _signer(pem, passphrase.encode() or None, str(path))


def _signer(pem: bytes, passphrase: bytes | None, name: str) -> CryptoSigner:
    try:
        private_key = load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # A wrong passphrase and a damaged file look the same from here.
        raise KeyFileError(
            f"the key in {name} cannot be unlocked",
            advice="Check the passphrase (FLOTILLA_KEY_PASSPHRASE, --passphrase-file or the "
            "prompt); if it is right, the file is damaged: take it from your backup.",
        ) from error
    if not isinstance(private_key, Ed25519PrivateKey):
        raise KeyFileError(
            f"the key in {name} is no Ed25519 key", advice="Make keys with `flotilla keys init`."
        )
    return CryptoSigner(private_key)


def generate_online_key() -> bytes:
    """A new key for snapshot or timestamp: unencrypted PEM that the server keeps (mode 0600)."""
    return generate_key().private_bytes


def load_online_key(pem: bytes) -> Signer:
    """The signer of an online key's PEM; KeyFileError when it is not one."""
    return _signer(pem, None, "the server's data directory")


def encode_public_key(key: Key) -> bytes:
    """A key object as root metadata would hold it, with its id: for ``GetTrustResponse``."""
    return canonical_json({"keyid": key.keyid, **key.to_dict()})


def decode_public_key(data: bytes) -> Key:
    """The key of ``encode_public_key``; UntrustedError for anything else."""
    if len(data) > _MAX_KEY_JSON_BYTES:
        raise UntrustedError(
            f"a public key of {len(data)} bytes is none",
            advice="Check that this is a Flotilla server of the same version.",
        )
    try:
        fields = json.loads(data)
        key = SSlibKey.from_dict(fields.pop("keyid"), fields)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UntrustedError(
            f"the server's public key cannot be read: {error!r}",
            advice="Check that this is a Flotilla server of the same version.",
        ) from error
    return key
