"""The client's side of a change of the fleet's certificate authority (docs/adr/0010).

A change replaces one authority by the next, and both are trusted for a while. A client that trusts
the old one accepts the new one because the old key has signed the new one's name and key (RFC 4210,
4.4). It never goes back: later signatures of the old key have no effect.

The endorsement is a separate certificate and never part of a chain, because authorities may not
have authorities under them. The certificate that vouches for the old authority towards new clients
is not an authority's: it is public, and must not lead any client back.
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
_UNKNOWN_AUTHORITY: Final = (
    "The server's data is ignored. If its operator did replace the authority, a box returns with a "
    "new join token (`flotilla-agent enroll --recover`), and an operator with the `ca_pem` of a "
    "current context file."
)


def follow(trusted: bytes, offered: Authorities, now: datetime | None = None) -> bytes:
    """Return the authorities to trust from now on, as PEM, newest first.

    ``trusted`` are those trusted until now. The offered current authority must be the newest of
    them or endorsed by it. Authorities that are no longer offered are dropped, and older ones are
    never added. The endorsement must be valid ``now``, by default this machine's time. Raises
    UntrustedError.
    """
    known = _load_all(trusted)
    current = _load(offered.current)
    if current != known[0]:
        _check_endorsed(current, offered.new_with_old, now, by=known[0])
    # The previous authority stays only if it was trusted before: it must not be introduced here.
    kept = [current]
    if offered.previous and _load(offered.previous) in known:
        kept.append(_load(offered.previous))
    return _pem(kept)


def begin(sha256: str, offered: Authorities, now: datetime | None = None) -> bytes:
    """Return the authorities to trust, as PEM, by the digest of one of them in a join token.

    Raises UntrustedError if neither has this digest, or if the one that has it does not endorse the
    other ``now``.
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
            f"the server's certificate authority has the digest {digest(current)}; the join token "
            f"names {sha256}",
            advice="This is another server, or a proxy intercepts TLS: check the address, or make "
            "a new token.",
        )
    return _pem([current] if previous is None else [current, previous])


def issuer_of(certificate: x509.Certificate, bundle: bytes) -> x509.Certificate | None:
    """Return the authority of the bundle that signed a certificate, or None."""
    for authority in _load_all(bundle):
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return authority
    return None


def newest(bundle: bytes) -> x509.Certificate:
    """Return the authority that issues certificates now, the first of a bundle."""
    return _load_all(bundle)[0]


def digest(authority: x509.Certificate) -> str:
    """Return the SHA-256 of the DER in hex, which join tokens contain."""
    return authority.fingerprint(hashes.SHA256()).hex()


def _check_endorsed(
    wanted: x509.Certificate,
    endorsement: bytes,
    now: datetime | None,
    *,
    by: x509.Certificate,
    forward: bool = True,
) -> None:
    """Check that the endorsement is a certificate for the same name and key, signed by ``by``.

    ``forward``, from ``by`` to its successor, requires an authority's certificate, because every
    device has an ordinary one. Otherwise an ordinary certificate is required.
    """
    refused = UntrustedError(
        f"the certificate authority {digest(wanted)} is not endorsed by {digest(by)}, which is "
        "trusted here",
        advice=_UNKNOWN_AUTHORITY,
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
            f"the endorsement of the certificate authority {digest(wanted)} is valid from "
            f"{found.not_valid_before_utc} to {found.not_valid_after_utc}, not now",
            advice="Check this machine's clock, then the server's.",
        )
    if (found.subject, found.public_key()) != (wanted.subject, wanted.public_key()):
        raise refused


def _load_all(pem: bytes, *, authority: bool = True) -> list[x509.Certificate]:
    if len(pem) > 2 * MAX_PEM_BYTES:
        raise UntrustedError(
            f"the authorities have {len(pem):,} bytes; the maximum is {2 * MAX_PEM_BYTES:,}",
            advice=_UNKNOWN_AUTHORITY,
        )
    try:
        found = x509.load_pem_x509_certificates(pem)
        for certificate in found:
            _check_constraint(certificate, authority=authority)
    except _UNREADABLE as error:
        raise UntrustedError(
            f"a certificate authority cannot be read: {error}", advice=_UNKNOWN_AUTHORITY
        ) from error
    return found


def _load(pem: bytes, *, authority: bool = True) -> x509.Certificate:
    found = _load_all(pem, authority=authority)
    if len(found) != 1:
        raise UntrustedError(
            f"expected one certificate, got {len(found)}", advice=_UNKNOWN_AUTHORITY
        )
    return found[0]


def _check_constraint(certificate: x509.Certificate, *, authority: bool) -> None:
    # Loads the key here, so that an unsupported kind raises inside the caller's try.
    certificate.public_key()
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    if constraints.value.ca != authority:
        raise ValueError(f"this certificate is {'not ' if authority else ''}an authority's")


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    encoding = serialization.Encoding.PEM
    return b"".join(certificate.public_bytes(encoding) for certificate in certificates)
