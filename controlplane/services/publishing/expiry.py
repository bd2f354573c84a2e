"""Warnings before metadata and the certificate authority expire, which only operators can renew."""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from artifact.trust.expiry import days_left, expiries
from artifact.trust.statements import EXPIRY_WARNING
from controlplane.metrics import Metrics
from controlplane.services.keys.server_keys import ServerKeys
from controlplane.store import trust_metadata
from controlplane.store.database import Database

log = logging.getLogger(__name__)

AUTHORITY = "authority"


class ExpiryService:
    """Keeps the warnings of /readyz and the metrics current; ``check`` runs periodically."""

    def __init__(
        self, database: Database, keys: ServerKeys, metrics: Metrics, clock: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._keys = keys
        self._metrics = metrics
        self._clock = clock
        self._expires: dict[str, datetime] = {}
        self._warned: set[str] = set()

    def warnings(self) -> Sequence[str]:
        """Return one line per role that expires within EXPIRY_WARNING, the soonest first."""
        now = self._clock()
        soon = [
            (expires, role)
            for role, expires in self._expires.items()
            if expires - now <= EXPIRY_WARNING
        ]
        return [_warning(role, expires, now) for expires, role in sorted(soon)]

    async def check(self) -> None:
        """Read every expiry, set the metric, and log each warning once."""
        authority = self._keys.authorities.current.certificate.not_valid_after_utc
        async with self._database.read() as tx:
            roles = await trust_metadata.current(tx)
        self._expires = {AUTHORITY: authority, **(expiries(roles) if roles else {})}
        now = self._clock()
        for role, expires in self._expires.items():
            self._metrics.expires.labels(role).set(expires.timestamp())
            if expires - now > EXPIRY_WARNING:
                self._warned.discard(role)
            elif role not in self._warned:
                self._warned.add(role)
                log.warning(
                    "metadata_expires_soon role=%s expires=%s days=%d",
                    role,
                    expires.isoformat(),
                    days_left(expires, now),
                )


def _warning(role: str, expires: datetime, now: datetime) -> str:
    left = days_left(expires, now)
    command = "flotilla ca rotate" if role == AUTHORITY else "flotilla keys renew"
    when = f"expires in {left} days" if left >= 0 else "has expired"
    return f"warning: {role} {when} ({expires:%Y-%m-%d}): run `{command}`"
