"""The server's authorities on disk: one, or two while one replaces the other.

`authorities.json` lists them and is replaced atomically: until then a change has not happened and
can be repeated, afterwards it has. Without the file only the first authority exists, in `ca.key`
and `ca.pem`. The next ones are `ca-2`, `ca-3` and so on, which exist only together with the file.
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
    """Numbers of the authorities; 0 means that there is none."""

    current: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 1
    previous: _Number = 0
    # Prepared, or being prepared, but not in use.
    following: _Number = 0


class AuthorityFiles:
    """The authorities that devices should trust, and those that sign."""

    def __init__(self, directory: Path, now: datetime) -> None:
        self._directory = directory
        self._file = directory / "authorities.json"
        self._load(self._read(), now)

    def _read(self) -> _State:
        if not self._file.exists():
            later = sorted(path.name for path in self._directory.glob("ca-*"))
            if later:
                raise DataDirectoryError(
                    f"{self._file} is missing although {later[0]} exists: the current authority is "
                    "unknown",
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
        # Again at every start: a crash may have come between the state file and the deletion.
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
    def server_authority(self) -> Authority:
        """Authority of the server's own certificate: during a change the old, trusted one."""
        return self.previous or self.current

    def offered_to_newcomers(self, now: datetime) -> Authorities:
        """Return the offer with the certificate that vouches for the previous authority.

        Only a device that enrols during a change needs it.
        """
        if self.previous is None:
            return self.offered
        vouched = self.current.vouch_for(self.previous, now)
        return dataclasses.replace(self.offered, old_with_new=vouched)

    def prepare(self, now: datetime) -> str:
        """Write the next authority to disk and return its SHA-256.

        During a change, return that of the current one.
        """
        if self.previous is not None:
            return self.current.sha256
        if not self._state.following:
            # Before the key files: key files of a later authority without this entry mean that the
            # state file was lost, and the next start refuses to run.
            following = self._state.current + 1
            self._write(msgspec.structs.replace(self._state, following=following))
        # Files that an interrupted attempt left are used as they are.
        return self._authority(self._state.following, now, make=True).sha256

    def begin(self, sha256: str, now: datetime) -> bool:
        """Make the prepared authority of this digest current; return False if there is none."""
        following = self._state.following
        if not following or self._authority(following, now).sha256 != sha256:
            return False
        # This write is the change; everything before it can be repeated.
        self._write(_State(current=following, previous=self._state.current))
        self._load(self._state, now)
        return True

    def end(self, sha256: str, now: datetime) -> bool:
        """Forget the previous authority of this digest and its key; False if there is none."""
        if self.previous is None or self.previous.sha256 != sha256:
            return False
        self._write(_State(current=self._state.current))
        self._load(self._state, now)
        return True

    def issuer(self, certificate: x509.Certificate) -> Authority | None:
        """Return the accepted authority that a certificate names; TLS verifies the signature."""
        for authority in (self.current, self.previous):
            if authority is not None and authority.certificate.subject == certificate.issuer:
                return authority
        return None

    def _remove_before(self, number: int) -> None:
        """Delete the key of a retired authority, also after a crash during ``end``."""
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
        """Load or make an authority; DataDirectoryError if damaged, or missing without ``make``."""
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
