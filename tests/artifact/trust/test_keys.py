"""A key file is useless without its passphrase, and is never overwritten."""

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner, SSlibKey

from artifact.errors import KeyFileError, UntrustedError
from artifact.trust.keys import (
    MIN_PASSPHRASE_CHARACTERS,
    decode_public_key,
    encode_public_key,
    generate_key,
    generate_online_key,
    load_key,
    load_online_key,
    write_key,
)

PASSPHRASE = "correct horse"


def test_a_key_comes_back_with_its_passphrase_alone(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    signer = generate_key()
    write_key(path, signer, PASSPHRASE)

    loaded = load_key(path, PASSPHRASE)
    loaded.public_key.verify_signature(signer.sign(b"x"), b"x")
    signer.public_key.verify_signature(loaded.sign(b"x"), b"x")
    assert b"ENCRYPTED" in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    for wrong in ("correct horsE", ""):
        with pytest.raises(KeyFileError, match="cannot be unlocked") as raised:
            load_key(path, wrong)
        assert "passphrase" in raised.value.advice


def test_openssl_reads_the_key_file_and_guessing_is_slowed_by_scrypt(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl command here")
    path = tmp_path / "root.pem"
    signer = generate_key()
    write_key(path, signer, PASSPHRASE)
    read = subprocess.run(
        [openssl, "pkey", "-in", path, "-passin", f"pass:{PASSPHRASE}", "-pubout"],
        capture_output=True,
        check=True,
    )
    public = SSlibKey.from_crypto(load_pem_public_key(read.stdout))
    assert public == signer.public_key
    parsed = subprocess.run([openssl, "asn1parse", "-in", path], capture_output=True, check=True)
    assert b":scrypt" in parsed.stdout


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    write_key(path, generate_key(), PASSPHRASE)
    before = path.read_bytes()
    with pytest.raises(KeyFileError, match="exists already"):
        write_key(path, generate_key(), PASSPHRASE)
    assert path.read_bytes() == before


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    write_key(path, generate_key(), PASSPHRASE)
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(KeyFileError, match="readable by others") as raised:
            load_key(path, PASSPHRASE)
        assert "chmod 600" in raised.value.advice


def test_a_short_passphrase_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    with pytest.raises(KeyFileError, match="7 characters"):
        write_key(path, generate_key(), "1234567")
    assert not path.exists()


def test_a_missing_damaged_or_foreign_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be read"):
        load_key(tmp_path / "none.pem", PASSPHRASE)
    path = tmp_path / "key.pem"
    path.touch(0o600)
    for content in (b"", b"not a key", CryptoSigner.generate_ecdsa().private_bytes):
        path.write_bytes(content)
        with pytest.raises(KeyFileError):
            load_key(path, PASSPHRASE)
    path.write_bytes(CryptoSigner.generate_ecdsa().private_bytes)
    with pytest.raises(KeyFileError, match="not an Ed25519 key"):
        load_online_key(path.read_bytes())


def test_an_online_key_comes_back_from_its_pem() -> None:
    pem = generate_online_key()
    first, second = load_online_key(pem), load_online_key(pem)
    assert first.public_key == second.public_key
    first.public_key.verify_signature(second.sign(b"x"), b"x")


def test_a_public_key_travels_as_json() -> None:
    key = generate_key().public_key
    assert decode_public_key(encode_public_key(key)) == key


@given(st.one_of(st.binary(max_size=64), st.sampled_from([b"[]", b"{}", b"1", b"x" * 5000])))
def test_what_is_no_public_key_is_refused(data: bytes) -> None:
    with pytest.raises(UntrustedError):
        decode_public_key(data)


def test_a_passphrase_at_the_minimum_is_accepted_and_a_shorter_one_is_not(tmp_path: Path) -> None:
    shortest = "x" * MIN_PASSPHRASE_CHARACTERS
    write_key(tmp_path / "a.pem", generate_key(), shortest)
    assert load_key(tmp_path / "a.pem", shortest)
    with pytest.raises(KeyFileError, match="the minimum is"):
        write_key(tmp_path / "b.pem", generate_key(), shortest[1:])
    assert not (tmp_path / "b.pem").exists()


def test_a_public_key_beyond_its_bound_is_refused_before_it_is_parsed() -> None:
    data = encode_public_key(generate_key().public_key)
    padded = data + b" " * 10_000
    with pytest.raises(UntrustedError, match="bytes; the maximum is"):
        decode_public_key(padded)
    assert decode_public_key(data + b" ")
