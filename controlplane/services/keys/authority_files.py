"""The authorities of this server on its disk: one, and two while one replaces the other.

`authorities.json` says which there are, and is replaced whole: before it, a change has not happened
and can be done again; after it, it has. Without the file there is the first one alone, in `ca.key`
and `ca.pem`; the next are `ca-2`, `ca-3` and so on, which are never there without the file.
"""

import dataclasses
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from artifact.trust.statements import Authorities
from controlplane.errors import DataDirectoryError
from controlplane.services.keys.authority import Authority, new_authority_certificate
from controlplane.services.keys.key_files import load_or_make_key
from controlplane.services.keys.private_files import read_or_make, write_private

_RESTORE: Final = "Restore the keys folder from your backup; without it every box must enrol again."
_Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers of authorities; 0 for none."""

    current: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 1
    previous: _Number = 0
    # Being made, or made and not in use yet.
    following: _Number = 0


class AuthorityFiles:
    """Whom devices are told to trust, and who signs what."""

    def __init__(self, directory: Path, now: datetime) -> None:
        self._directory = directory
        self._file = directory / "authorities.json"
        self._load(self._read(), now)

    def _read(self) -> _State:
        if not self._file.exists():
            later = sorted(path.name for path in self._directory.glob("ca-*"))
            if later:
                raise DataDirectoryError(
                    f"{self._file} is missing, and {later[0]} is not: which authority is current "
                    "is not known",
                    advice=_RESTORE,
                )
            return _State()
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_State)
        except msgspec.MsgspecError as error:
            raise DataDirectoryError(
                f"{self._file} is damaged: {error}", advice=_RESTORE
            ) from error

    def _load(self, state: _State, now: datetime) -> None:
        first = not self._file.exists()
        self._remove_before(state.previous or state.current)
        self.current = self._authority(state.current, now, make=first)
        self.previous = self._authority(state.previous, now) if state.previous else None
        self.offered = Authorities(self.current.pem)
        if self.previous is not None:
            self.offered = Authorities(
                current=self.current.pem,
                previous=self.previous.pem,
                new_with_old=self.previous.endorse(self.current, now),
            )
        self._state = state

    @property
    def of_server(self) -> Authority:
        """Signs the server's own certificate: the one that everybody trusts during a change."""
        return self.previous or self.current

    def offered_to_newcomers(self, now: datetime) -> Authorities:
        """With what vouches for the previous one, which nobody else needs."""
        if self.previous is None:
            return self.offered
        vouched = self.current.vouch_for(self.previous, now)
        return dataclasses.replace(self.offered, old_with_new=vouched)

    def prepare(self, now: datetime) -> str:
        """The next authority is on the disk; its SHA-256. During a change that of the current."""
        if self.previous is not None:
            return self.current.sha256
        if not self._state.following:
            # Before its files: those of a later one alone mean that this file was lost.
            following = self._state.current + 1
            self._write(msgspec.structs.replace(self._state, following=following))
        # What is left of an earlier try is as good.
        return self._authority(self._state.following, now, make=True).sha256

    def begin(self, sha256: str, now: datetime) -> bool:
        """Issue under the prepared authority of this digest; False when there is none such."""
        following = self._state.following
        if not following or self._authority(following, now).sha256 != sha256:
            return False
        self._write(_State(current=following, previous=self._state.current))
        self._load(self._state, now)
        return True

    def end(self, sha256: str, now: datetime) -> bool:
        """Forget the previous authority, of this digest, and its key; False if there is none."""
        if self.previous is None or self.previous.sha256 != sha256:
            return False
        self._write(_State(current=self._state.current))
        self._load(self._state, now)
        return True

    def issuer(self, certificate: x509.Certificate) -> Authority | None:
        """Whose name a certificate bears, among those that are accepted; TLS has verified it."""
        for authority in (self.current, self.previous):
            if authority is not None and authority.certificate.subject == certificate.issuer:
                return authority
        return None

    def _remove_before(self, number: int) -> None:
        """A key that was retired is nobody's to steal, also when the server was killed then."""
        if number > 1:
            for path in self._paths(number - 1):
                path.unlink(missing_ok=True)

    def _write(self, state: _State) -> None:
        write_private(self._file, msgspec.json.encode(state))
        self._state = state

    def _paths(self, number: int) -> tuple[Path, Path]:
        stem = "ca" if number == 1 else f"ca-{number}"
        return self._directory / f"{stem}.key", self._directory / f"{stem}.pem"

    def _authority(self, number: int, now: datetime, *, make: bool = False) -> Authority:
        """Of this number; DataDirectoryError when it is damaged, or missing and not to be made."""
        key_path, certificate_path = self._paths(number)
        for path in (key_path, certificate_path):
            if not make and not path.exists():
                raise DataDirectoryError(f"{path} is missing", advice=_RESTORE)
        key = load_or_make_key(key_path)
        pem = read_or_make(
            certificate_path,
            lambda: new_authority_certificate(key, now).public_bytes(serialization.Encoding.PEM),
        )
        try:
            certificate = x509.load_pem_x509_certificate(pem)
        except ValueError as error:
            raise DataDirectoryError(
                f"{certificate_path} is not a certificate: {error}", advice=_RESTORE
            ) from error
        if certificate.public_key() != key.public_key():
            raise DataDirectoryError(
                f"{certificate_path} is not for the key in {key_path}", advice=_RESTORE
            )
        return Authority(key, certificate)
