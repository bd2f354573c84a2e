"""Ed25519 signing keys as python-tuf signers; private keys are PKCS#8 PEM.

Offline keys (root, targets, publishers) are the operators': files of mode 0600, encrypted with a
passphrase. Online keys (snapshot, timestamp) are the server's, which stores their PEM.
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
    """Generate an Ed25519 key."""
    return CryptoSigner.generate_ed25519()


def write_key(path: Path, signer: CryptoSigner, passphrase: str) -> None:
    """Store an offline key, encrypted, with mode 0600; never overwrite a file."""
    if len(passphrase) < MIN_PASSPHRASE_CHARACTERS:
        raise KeyFileError(
            f"the passphrase has {len(passphrase)} characters; the minimum is "
            f"{MIN_PASSPHRASE_CHARACTERS}",
            advice="Choose a longer one: it is the only protection of a copied key file.",
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
    """Read an offline key; KeyFileError if it is missing, damaged, not private or locked."""
    try:
        with path.open("rb") as file:
            # Read from the opened file, which a rename cannot exchange for another.
            mode = os.fstat(file.fileno()).st_mode
            pem = file.read(_MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise KeyFileError(
            f"the key file {path} cannot be read: {error.strerror}",
            advice="Name the folder that `flotilla keys init` filled with --keys.",
        ) from error
    if mode & 0o077:
        raise KeyFileError(
            f"the key file {path} is readable by others (mode {mode & 0o777:o})",
            advice=f"Run `chmod 600 {path}`, and replace the key if others had access.",
        )
    return _signer(pem, passphrase.encode() or None, str(path))


def _signer(pem: bytes, passphrase: bytes | None, name: str) -> CryptoSigner:
    try:
        private_key = load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # A wrong passphrase and a damaged file raise the same error.
        raise KeyFileError(
            f"the key in {name} cannot be unlocked",
            advice="Check the passphrase (FLOTILLA_KEY_PASSPHRASE, --passphrase-file or the "
            "prompt); if it is right, the file is damaged: take it from your backup.",
        ) from error
    if not isinstance(private_key, Ed25519PrivateKey):
        raise KeyFileError(
            f"the key in {name} is not an Ed25519 key",
            advice="Make keys with `flotilla keys init`.",
        )
    return CryptoSigner(private_key)


def generate_online_key() -> bytes:
    """Generate a key for snapshot or timestamp: unencrypted PEM, which the server stores."""
    return generate_key().private_bytes


def load_online_key(pem: bytes) -> Signer:
    """Load an online key from PEM; KeyFileError if it is damaged."""
    return _signer(pem, None, "the server's data directory")


def encode_public_key(key: Key) -> bytes:
    """Encode a key as in root metadata, with its id, for ``GetTrustResponse``."""
    return canonical_json({"keyid": key.keyid, **key.to_dict()})


def decode_public_key(data: bytes) -> Key:
    """Decode the output of ``encode_public_key``; UntrustedError for any other input."""
    if len(data) > _MAX_KEY_JSON_BYTES:
        raise UntrustedError(
            f"the public key has {len(data)} bytes; the maximum is {_MAX_KEY_JSON_BYTES}",
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
