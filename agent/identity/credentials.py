"""TLS key, certificate and trusted authorities as plain data, without cryptography's types."""

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
    """Key, certificate and trusted authorities, each PEM, and the certificate's dates.

    ``ca_pem`` starts with the authority that issues certificates now; ``authority_sha256`` is its
    digest. ``is_of_newest_authority`` is False while the authority changes and the certificate is
    still of the old one.
    """

    key_pem: bytes
    certificate_pem: bytes
    ca_pem: bytes
    valid_from: datetime
    valid_until: datetime
    authority_sha256: str
    is_of_newest_authority: bool

    def check_not_expired(self, now: datetime) -> None:
        """Raise IdentityError, with the owner's next step, if the certificate has expired."""
        if self.valid_until <= now:
            raise IdentityError(
                f"the device certificate expired at {self.valid_until.isoformat()}", advice=RECOVER
            )

    def renew_at(self) -> datetime:
        """Return the moment after two thirds of the certificate's life."""
        return self.valid_from + (self.valid_until - self.valid_from) * 2 / 3
