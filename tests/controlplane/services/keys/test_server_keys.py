"""The server's keys are made once, stay private, and are renewed in time."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from controlplane.errors import DataDirectoryError, InvalidInputError
from controlplane.services.keys import authority_files, director_keys, private_files, server_keys
from controlplane.services.keys.private_files import write_private
from controlplane.services.keys.server_keys import ServerKeys, common_name

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
NAMES = ("fleet.example", "127.0.0.1", "::1")
LIFE = timedelta(days=9)


def opened(path: Path, now: datetime = NOW, names: tuple[str, ...] = NAMES) -> ServerKeys:
    return ServerKeys(path / "keys", names, LIFE, now)


def leaf(keys: ServerKeys) -> x509.Certificate:
    return x509.load_pem_x509_certificates(keys.tls.chain_pem)[0]


def test_a_disk_that_fails_under_a_key_is_left_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, f"no space for {descriptor}")

    (tmp_path / "key").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_private(tmp_path / "key", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("key", b"old")]


def test_keys_are_made_once_and_are_the_owners(tmp_path: Path) -> None:
    first, again = opened(tmp_path), opened(tmp_path)
    assert again.authorities.current.pem == first.authorities.current.pem
    assert again.tls == first.tls
    assert again.online.current.snapshot.public_key == first.online.current.snapshot.public_key
    assert again.online.following.snapshot.public_key == first.online.following.snapshot.public_key
    assert again.director.first_root == first.director.first_root
    for path in (tmp_path / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_the_servers_certificate_is_for_its_names(tmp_path: Path) -> None:
    keys = opened(tmp_path)
    certificate = leaf(keys)
    certificate.verify_directly_issued_by(keys.authorities.current.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fleet.example"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)


@pytest.mark.parametrize(("days", "renewed"), [(5.9, False), (6.1, True), (30, True)])
def test_it_is_renewed_with_a_third_of_its_life_left(
    tmp_path: Path, days: float, renewed: bool
) -> None:
    keys = opened(tmp_path)
    before = leaf(keys).serial_number
    assert keys.renew(NOW + timedelta(days=days)) is renewed
    assert (leaf(keys).serial_number != before) is renewed
    # A restart at that time gives the same result.
    again = opened(tmp_path, NOW + timedelta(days=days))
    assert leaf(again).serial_number == leaf(keys).serial_number


def test_other_names_make_a_new_certificate_not_a_new_authority(tmp_path: Path) -> None:
    first = opened(tmp_path)
    again = opened(tmp_path, names=("other.example",))
    assert again.authorities.current.pem == first.authorities.current.pem
    assert leaf(again) != leaf(first)


def test_a_devices_certificate_carries_its_id(tmp_path: Path) -> None:
    keys = opened(tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = keys.issue_device(key.public_key(), "device-7", NOW, timedelta(days=1))
    certificate.verify_directly_issued_by(keys.authorities.current.certificate)
    assert common_name(certificate) == "device-7"
    assert certificate.not_valid_after_utc == NOW + timedelta(days=1)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca


def test_a_damaged_key_is_named(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "keys" / "ca.key").write_bytes(b"not a key")
    with pytest.raises(DataDirectoryError, match=r"ca\.key is not a P-256 key"):
        opened(tmp_path)


def test_what_is_no_host_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="neither a host name nor an IP address"):
        opened(tmp_path, names=("no host",))


def issuers(keys: ServerKeys) -> tuple[str, str]:
    """Return the authorities of the server's and of a new device's certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    device = keys.issue_device(key.public_key(), "device-7", NOW, timedelta(days=1))
    return leaf(keys).issuer.rfc4514_string(), device.issuer.rfc4514_string()


def test_a_new_authority_signs_devices_first_and_the_server_when_the_old_one_ends(
    tmp_path: Path,
) -> None:
    keys = opened(tmp_path)
    old, first = issuers(keys)[0], keys.authorities.current.sha256
    following = keys.authorities.prepare(NOW)
    assert issuers(keys) == (old, old)
    assert keys.authorities.begin(following, NOW)
    keys.renew(NOW)
    server, new = issuers(keys)
    assert (server, new != old) == (old, True)
    assert keys.authorities.prepare(NOW) == following
    assert keys.authorities.end(first, NOW)
    assert keys.renew(NOW)
    assert issuers(keys) == issuers(opened(tmp_path)) == (new, new)
    assert not (tmp_path / "keys" / "ca.key").exists()


def test_a_server_killed_at_any_write_of_a_change_has_one_authority_or_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = False
    for writes in range(20):
        place = tmp_path / str(writes)
        first = opened(place).authorities.current.sha256
        left = iter(range(writes))

        def write(path: Path, data: bytes, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            write_private(path, data)

        with monkeypatch.context() as patch:
            for module in (authority_files, private_files, server_keys):
                patch.setattr(module, "write_private", write)
            with contextlib.suppress(KeyboardInterrupt):
                change(opened(place), first)
                finished = True
        again = opened(place)
        files = again.authorities
        assert files.server_authority.sha256 in {first, files.current.sha256}
        assert leaf(again).issuer == files.server_authority.certificate.subject
        change(again, first)
        assert (files.previous, files.current.sha256 != first) == (None, True)
        assert issuers(again)[0] == issuers(again)[1]
        assert not (place / "keys" / "ca.key").exists()
        if finished:
            break
    assert finished


def change(keys: ServerKeys, first: str) -> None:
    """Carry out the remaining steps of a change."""
    files = keys.authorities
    if files.current.sha256 == first:
        files.begin(files.prepare(NOW), NOW)
    files.end(first, NOW)
    keys.renew(NOW)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("ca-2.key", None, "ca-2.key is missing"),
        ("ca-2.pem", None, "ca-2.pem is missing"),
        ("authorities.json", b"{}}", "authorities.json is damaged"),
        ("authorities.json", None, "authorities.json is missing although ca-2.key exists"),
    ],
)
def test_an_authority_that_is_missing_or_damaged_is_not_made_anew(
    tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    change(opened(tmp_path), opened(tmp_path).authorities.current.sha256)
    path = tmp_path / "keys" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(DataDirectoryError, match=told) as refused:
        opened(tmp_path)
    assert "backup" in refused.value.advice


def test_a_change_that_was_lost_in_its_middle_does_not_begin_anew(tmp_path: Path) -> None:
    """The first authority still exists, but boxes that have followed the change do not trust it."""
    files = opened(tmp_path).authorities
    assert files.begin(files.prepare(NOW), NOW)
    (tmp_path / "keys" / "authorities.json").unlink()
    with pytest.raises(DataDirectoryError, match=r"authorities\.json is missing") as refused:
        opened(tmp_path)
    assert "backup" in refused.value.advice


@pytest.mark.parametrize("root", [False, True])
def test_a_server_killed_at_any_write_of_a_directors_rotation_has_the_old_key_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: bool
) -> None:
    for writes in range(3):
        place = tmp_path / str(writes)
        before = opened(place).director.online.public_key.keyid
        left = iter(range(writes))

        def write(path: Path, data: bytes, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            write_private(path, data)

        with monkeypatch.context() as patch:
            for module in (director_keys, private_files):
                patch.setattr(module, "write_private", write)
            # The last rotation is killed after the root was written and before the key was moved.
            patch.setattr(director_keys, "replace_durably", write)
            with contextlib.suppress(KeyboardInterrupt):
                opened(place).director.rotate(2, root=root, now=NOW)
        keys = opened(place).director
        assert keys.version == (2 if writes > 1 else 1)
        keys.rotate(2, root=root, now=NOW)
        again = opened(place).director
        assert (again.version, again.roots) == (2, keys.roots)
        assert (again.online.public_key.keyid != before) is not root
        assert again.rotate(3, root=not root, now=NOW)
