"""Following the fleet's certificate authority when it is replaced (docs/adr/0010).

A change leads from one authority to the next, with both trusted for a while. Whoever trusts the old
one believes in the new one because the old one's key has signed the new one's name and key (RFC
4210, 4.4), and never goes back: what the old key signs after that moves nobody.

The endorsement is a certificate of its own, and never part of a chain: authorities may have no
authority under them. What vouches for the old one towards newcomers is a certificate that is no
authority's: everybody may have it, and it must lead nobody back.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization

from artifact.errors import UntrustedError
from artifact.trust.statements import Authorities

MAX_PEM_BYTES: Final = 16 << 10
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
)
_STRANGER: Final = (
    "Nothing is taken from it. If the authority was replaced honestly, a box comes back with a new "
    "join token (`flotilla-agent enroll --recover`), an operator with the `ca_pem` of a context "
    "file that was refreshed."
)


def follow(trusted: bytes, offered: Authorities, now: datetime | None = None) -> bytes:
    """The authorities to trust from now on, newest first, by those trusted until now.

    The current one offered must be the newest that is trusted, or be endorsed by that. What is not
    offered any more is not trusted any more; nothing older is ever added. What endorses must be
    valid ``now``: by this machine's clock, when that is not given. UntrustedError.
    """
    known = _load_all(trusted)
    current = _load(offered.current)
    if current != known[0]:
        _check_endorsed(current, offered.new_with_old, now, by=known[0])
    kept = [current]
    if offered.previous and _load(offered.previous) in known:
        kept.append(_load(offered.previous))
    return _pem(kept)


def begin(sha256: str, offered: Authorities, now: datetime | None = None) -> bytes:
    """The authorities to trust, newest first, by the digest of one of them in a join token.

    UntrustedError when neither has it, or the one that has it does not endorse the other ``now``.
    """
    current = _load(offered.current)
    previous = _load(offered.previous) if offered.previous else None
    if digest(current) == sha256:
        if previous is not None:
            _check_endorsed(previous, offered.old_with_new, now, by=current, forward=False)
    elif previous is not None and digest(previous) == sha256:
        _check_endorsed(current, offered.new_with_old, now, by=previous)
    else:
        raise UntrustedError(
            f"the server's certificate authority has the digest {digest(current)}, the token names "
            f"{sha256}",
            advice="This is not the server that the token is from, or something stands between: "
            "check the address, or create a new token.",
        )
    return _pem([current] if previous is None else [current, previous])


def issuer_of(certificate: x509.Certificate, bundle: bytes) -> x509.Certificate | None:
    """Which of these authorities signed a certificate; None when none did."""
    for authority in _load_all(bundle):
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return authority
    return None


def newest(bundle: bytes) -> x509.Certificate:
    """The authority that certificates are issued under."""
    return _load_all(bundle)[0]


def digest(authority: x509.Certificate) -> str:
    """SHA-256 of the DER, hex: what join tokens name."""
    return authority.fingerprint(hashes.SHA256()).hex()


def _check_endorsed(
    wanted: x509.Certificate,
    endorsement: bytes,
    now: datetime | None,
    *,
    by: x509.Certificate,
    forward: bool = True,
) -> None:
    """The endorsement is a certificate for the same name and key, signed by ``by``.

    An authority's, if it leads ``forward``, to the one after ``by``: any device could show one that
    is none's. Otherwise none's.
    """
    refused = UntrustedError(
        f"the certificate authority {digest(wanted)} is not endorsed by {digest(by)}, which is "
        "trusted here",
        advice=_STRANGER,
    )
    if not endorsement:
        raise refused
    found = _load(endorsement, authority=forward)
    try:
        found.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        raise refused from None
    if not found.not_valid_before_utc <= (now or datetime.now(UTC)) <= found.not_valid_after_utc:
        raise UntrustedError(
            f"what endorses the certificate authority {digest(wanted)} is valid from "
            f"{found.not_valid_before_utc} to {found.not_valid_after_utc}, which is not now",
            advice="Check this machine's clock, then the server's.",
        )
    if (found.subject, found.public_key()) != (wanted.subject, wanted.public_key()):
        raise refused


def _load_all(pem: bytes, *, authority: bool = True) -> list[x509.Certificate]:
    if len(pem) > 2 * MAX_PEM_BYTES:
        raise UntrustedError(f"authorities of {len(pem)} bytes are none", advice=_STRANGER)
    try:
        found = x509.load_pem_x509_certificates(pem)
        for certificate in found:
            _check_constraint(certificate, authority=authority)
    except _UNREADABLE as error:
        raise UntrustedError(
            f"a certificate authority cannot be read: {error}", advice=_STRANGER
        ) from error
    return found


def _load(pem: bytes, *, authority: bool = True) -> x509.Certificate:
    found = _load_all(pem, authority=authority)
    if len(found) != 1:
        raise UntrustedError(
            f"{len(found)} certificates came in the place of one", advice=_STRANGER
        )
    return found[0]


def _check_constraint(certificate: x509.Certificate, *, authority: bool) -> None:
    # Here, and not where it is compared: an unknown kind of key is an error.
    certificate.public_key()
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    if constraints.value.ca != authority:
        raise ValueError(f"this certificate is {'not ' if authority else ''}an authority's")


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    encoding = serialization.Encoding.PEM
    return b"".join(certificate.public_bytes(encoding) for certificate in certificates)
