"""A client follows a new authority only if the previous one endorses it."""

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from artifact.errors import UntrustedError
from artifact.trust.authority import begin, digest, follow, issuer_of, newest
from artifact.trust.statements import Authorities
from controlplane.services.keys.authority import Authority, new_authority_certificate

NOW = datetime.now(UTC)


def authority() -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    return Authority(key, new_authority_certificate(key, NOW))


OLD, NEW, STRANGER = authority(), authority(), authority()


def change(old: Authority = OLD, new: Authority = NEW) -> Authorities:
    return Authorities(new.pem, old.pem, old.endorse(new, NOW), new.vouch_for(old, NOW))


def device_of(issuer: Authority) -> bytes:
    certificate = issuer.issue(
        STRANGER.key.public_key(),
        common_name="device-1",
        usage=ExtendedKeyUsageOID.CLIENT_AUTH,
        now=NOW,
        lifetime=timedelta(days=1),
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def test_the_new_one_is_trusted_beside_the_old_one_and_then_alone() -> None:
    both = follow(OLD.pem, change())
    assert both == NEW.pem + OLD.pem
    assert follow(both, change()) == both
    alone = follow(both, Authorities(NEW.pem))
    assert alone == NEW.pem
    assert follow(alone, change(NEW, STRANGER)) == STRANGER.pem + NEW.pem


def test_without_a_change_nothing_changes() -> None:
    assert follow(OLD.pem, Authorities(OLD.pem)) == OLD.pem


def of_an_unknown_kind_of_key() -> bytes:
    der = NEW.certificate.public_bytes(serialization.Encoding.DER)
    elliptic, unknown = bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d027f")
    return ssl.DER_cert_to_PEM_cert(der.replace(elliptic, unknown)).encode()


OFFERS: dict[str, Callable[[], Authorities]] = {
    "not endorsed": lambda: Authorities(STRANGER.pem, OLD.pem),
    "endorsed by itself": lambda: Authorities(STRANGER.pem, OLD.pem, STRANGER.pem),
    "with the endorsement of another": lambda: Authorities(
        STRANGER.pem, OLD.pem, OLD.endorse(NEW, NOW)
    ),
    "endorsed by a stranger": lambda: change(authority(), STRANGER),
    "endorsed by a certificate that is no authority's": lambda: Authorities(
        STRANGER.pem, OLD.pem, device_of(OLD)
    ),
    "a device's own certificate": lambda: Authorities(device_of(OLD), OLD.pem, device_of(OLD)),
    "no certificate": lambda: Authorities(b"hello", OLD.pem, OLD.endorse(NEW, NOW)),
    "of an unknown kind of key": lambda: Authorities(
        of_an_unknown_kind_of_key(), OLD.pem, OLD.endorse(NEW, NOW)
    ),
    "nothing": lambda: Authorities(b""),
    "two at once": lambda: Authorities(NEW.pem + STRANGER.pem, OLD.pem, OLD.endorse(NEW, NOW)),
    "megabytes": lambda: Authorities(NEW.pem * 2000, OLD.pem, OLD.endorse(NEW, NOW)),
}


@pytest.mark.parametrize("name", OFFERS)
def test_another_authority_is_refused(name: str) -> None:
    with pytest.raises(UntrustedError):
        follow(OLD.pem, OFFERS[name]())


def test_what_the_old_one_endorses_afterwards_moves_nobody() -> None:
    both = follow(OLD.pem, change())
    with pytest.raises(UntrustedError, match="not endorsed"):
        follow(both, change(OLD, STRANGER))
    with pytest.raises(UntrustedError, match="not endorsed"):
        follow(both, Authorities(OLD.pem))
    # A retired authority stays untrusted, although the new one once vouched for it.
    assert follow(NEW.pem, change()) == NEW.pem


@pytest.mark.parametrize("trusted", [NEW.pem + OLD.pem, NEW.pem])
def test_what_vouches_for_the_old_one_towards_newcomers_leads_nobody_back(trusted: bytes) -> None:
    """A thief of the old key or of the server's key gets this certificate from any answer."""
    with pytest.raises(UntrustedError):
        follow(trusted, Authorities(OLD.pem, NEW.pem, change().old_with_new))
    with pytest.raises(UntrustedError):
        begin(NEW.sha256, Authorities(OLD.pem, NEW.pem, change().old_with_new))


@pytest.mark.parametrize("named", [OLD, NEW])
def test_a_join_token_of_either_begins_with_both(named: Authority) -> None:
    assert begin(named.sha256, change()) == NEW.pem + OLD.pem


def test_a_join_token_of_neither_begins_with_nothing() -> None:
    with pytest.raises(UntrustedError, match=f"names {STRANGER.sha256}"):
        begin(STRANGER.sha256, change())


@pytest.mark.parametrize("named", [OLD, NEW])
def test_a_join_token_does_not_vouch_for_what_its_authority_does_not_endorse(
    named: Authority,
) -> None:
    with pytest.raises(UntrustedError, match="not endorsed"):
        begin(named.sha256, Authorities(NEW.pem, OLD.pem))


def test_who_issued_a_certificate_is_found_in_a_bundle() -> None:
    certificate = x509.load_pem_x509_certificate(device_of(OLD))
    assert issuer_of(certificate, NEW.pem + OLD.pem) == OLD.certificate
    assert issuer_of(certificate, NEW.pem) is None
    assert digest(newest(NEW.pem + OLD.pem)) == NEW.sha256


@pytest.mark.parametrize(("named", "days"), [(NEW, 2), (OLD, 4000)])
def test_what_vouches_for_an_authority_lapses(named: Authority, days: int) -> None:
    with pytest.raises(UntrustedError, match=", not now"):
        begin(named.sha256, change(), NOW + timedelta(days=days))


def test_an_endorsement_lapses() -> None:
    with pytest.raises(UntrustedError, match=", not now"):
        follow(OLD.pem, change(), NOW + timedelta(days=4000))
