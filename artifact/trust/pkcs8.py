"""Encrypted PKCS#8 with scrypt, so that guessing the passphrase is expensive.

``cryptography`` can write only PBES2 with 2,048 rounds of PBKDF2, though it reads other forms. So
this module builds the container (RFC 5958): scrypt (RFC 7914, section 7) with the strongest of
OWASP's equal parameters that OpenSSL's command still reads (N = 2^14, r = 8, p = 5), and
AES-256-CBC (RFC 8018).
"""

import base64
import os
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.padding import PKCS7

_N: Final = 1 << 14
_R: Final = 8
_P: Final = 5
_KEY_BYTES: Final = 32
_BLOCK_BYTES: Final = 16

_SEQUENCE: Final = 0x30
_INTEGER: Final = 0x02
_OCTETS: Final = 0x04
# Object identifiers, encoded.
_PBES2: Final = bytes.fromhex("06092a864886f70d01050d")
_SCRYPT: Final = bytes.fromhex("06092b06010401da47040b")
_AES256_CBC: Final = bytes.fromhex("060960864801650304012a")


def encrypt_private_key(der: bytes, passphrase: bytes) -> bytes:
    """Encrypt a plain PKCS#8 key in DER and return PEM (ENCRYPTED PRIVATE KEY)."""
    salt, iv = os.urandom(16), os.urandom(_BLOCK_BYTES)
    key = Scrypt(salt, _KEY_BYTES, _N, _R, _P).derive(passphrase)
    padder = PKCS7(8 * _BLOCK_BYTES).padder()
    encryptor = Cipher(AES256(key), CBC(iv)).encryptor()
    secret = encryptor.update(padder.update(der) + padder.finalize()) + encryptor.finalize()

    costs = b"".join(_integer(value) for value in (_N, _R, _P))
    derivation = _field(_SEQUENCE, _SCRYPT + _field(_SEQUENCE, _field(_OCTETS, salt) + costs))
    cipher = _field(_SEQUENCE, _AES256_CBC + _field(_OCTETS, iv))
    algorithm = _field(_SEQUENCE, _PBES2 + _field(_SEQUENCE, derivation + cipher))
    container = _field(_SEQUENCE, algorithm + _field(_OCTETS, secret))
    text = base64.encodebytes(container).replace(b"\n", b"")
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    name = b"ENCRYPTED PRIVATE KEY"
    return b"\n".join([b"-----BEGIN %s-----" % name, *lines, b"-----END %s-----" % name, b""])


def _integer(value: int) -> bytes:
    return _field(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _field(tag: int, content: bytes) -> bytes:
    """Encode one DER field: tag, length, content."""
    length = len(content)
    if length < 0x80:  # noqa: PLR2004 - the short form of a length (X.690, 8.1.3.4)
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content
