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
    authority_valid_until: datetime
    is_of_newest_authority: bool

    def check_valid(self, now: datetime) -> None:
        """Raise IdentityError, with the owner's next step, outside the certificate's dates."""
        if now < self.valid_from:
            raise IdentityError(
                f"the device certificate is valid from {self.valid_from.isoformat()}, and this "
                f"box's clock says {now.isoformat(timespec='seconds')}",
                advice="Set the clock (timedatectl, NTP); the agent then connects again.",
            )
        if self.valid_until <= now:
            raise IdentityError(
                f"the device certificate expired at {self.valid_until.isoformat()}, and this box's "
                f"clock says {now.isoformat(timespec='seconds')}",
                advice=f"If the clock is wrong, set it (timedatectl, NTP). Otherwise: {RECOVER}",
            )

    def renew_at(self) -> datetime:
        """Return the moment after two thirds of the certificate's life."""
        return self.valid_from + (self.valid_until - self.valid_from) * 2 / 3
