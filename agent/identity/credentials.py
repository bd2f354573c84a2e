"""What the box shows of itself and whom it believes, for who checks no signature."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from agent.errors import IdentityError

RECOVER: Final = (
    "Make a token with `flotilla token create` and run `flotilla-agent enroll --recover --token "
    "TOKEN` with this --data-dir: the box keeps its key, its name and what it runs."
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Key, certificate and trusted authorities, each PEM, and what the certificate says.

    ``ca_pem`` has the authority that certificates are issued under now first, and
    ``authority_sha256`` names it. ``is_of_newest_authority``: the certificate outlives a change of
    authority that is under way.
    """

    key_pem: bytes
    certificate_pem: bytes
    ca_pem: bytes
    valid_from: datetime
    valid_until: datetime
    authority_sha256: str
    is_of_newest_authority: bool

    def check_not_expired(self, now: datetime) -> None:
        """IdentityError when the certificate has run out, with what the box's owner must do."""
        if self.valid_until <= now:
            raise IdentityError(
                f"the device certificate expired at {self.valid_until.isoformat()}", advice=RECOVER
            )

    def renew_at(self) -> datetime:
        """Two thirds into the certificate's life."""
        return self.valid_from + (self.valid_until - self.valid_from) * 2 / 3
