"""Warnings about metadata and certificates that expire soon, before they block every update.

The box's copies are read without verification: they were verified when they were stored, and a
warning is all that follows from them.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec

from agent.errors import AgentError
from agent.identity.credentials import Credentials
from agent.link.device_warnings import DeviceWarnings
from artifact.errors import ArtifactError
from artifact.trust.statements import EXPIRY_WARNING

log = logging.getLogger(__name__)

# Files are read every hour, so that a warning ends soon after its cause; metadata is fetched daily.
LOOK_SECONDS: Final = 3600.0
REFRESH_EVERY: Final = timedelta(days=1)
MAX_METADATA_BYTES: Final = 4 << 20
# The server renews these daily, and the box's copies are as old as its last update.
_RENEWED_BY_SERVER: Final = frozenset({"timestamp", "snapshot"})
# The device's certificate is renewed after two thirds of its life; less than a sixth is late.
OVERDUE_SHARE: Final = 6


class _Signed(msgspec.Struct, frozen=True):
    expires: datetime


class _Metadata(msgspec.Struct, frozen=True):
    signed: _Signed


def metadata_expiries(folder: Path) -> dict[str, datetime]:
    """Return the expiry of each role that offline keys sign, from python-tuf's cache."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        if path.stem in _RENEWED_BY_SERVER:
            continue
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            with path.open("rb") as source:
                data = source.read(MAX_METADATA_BYTES)
            found[path.stem] = msgspec.json.decode(data, type=_Metadata).signed.expires
    return found


def expiry_warnings(
    metadata: dict[str, datetime], identity: Credentials, now: datetime
) -> dict[str, str]:
    """Return a warning, or an empty text, for each role, the authority and the certificate."""
    texts = {}
    for role, expires in metadata.items():
        texts[f"metadata/{role}"] = _text(
            expires,
            now,
            f"the {role} metadata of the image repository {_verb(expires, now)} on {{date}}; "
            "without new signatures this device then refuses every update. Run `flotilla keys "
            "renew` where its keys are",
        )
    authority = identity.authority_valid_until
    texts["authority"] = _text(
        authority,
        now,
        f"the fleet's certificate authority {_verb(authority, now)} on {{date}}; this device then "
        "cannot connect. Replace it: `flotilla ca rotate`",
    )
    remaining, life = identity.valid_until - now, identity.valid_until - identity.valid_from
    texts["certificate"] = ""
    if remaining < life / OVERDUE_SHARE:
        texts["certificate"] = (
            f"the device certificate {_verb(identity.valid_until, now)} on "
            f"{identity.valid_until:%Y-%m-%d} and was not renewed: see the log of the device for "
            "certificate_not_renewed"
        )
    return texts


def _verb(expires: datetime, now: datetime) -> str:
    return "expired" if expires <= now else "expires"


def _text(expires: datetime, now: datetime, text: str) -> str:
    if expires - now >= EXPIRY_WARNING:
        return ""
    return text.format(date=f"{expires:%Y-%m-%d}")


class ExpiryWatch:
    """Looks every hour. ``refresh`` fetches newer metadata before a warning about old copies."""

    def __init__(
        self,
        folder: Path,
        identity: Callable[[], Credentials],
        warnings: DeviceWarnings,
        *,
        refresh: Callable[[], Awaitable[None]],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = folder
        self._identity = identity
        self._warnings = warnings
        self._refresh = refresh
        self._now = now
        self._refreshed_at: datetime | None = None

    async def run(self) -> None:
        """Look every hour, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Set or end the warnings."""
        expiries = await asyncio.to_thread(metadata_expiries, self._folder)
        now = self._now()
        is_soon = any(expires - now < EXPIRY_WARNING for expires in expiries.values())
        if is_soon and (self._refreshed_at is None or now - self._refreshed_at >= REFRESH_EVERY):
            self._refreshed_at = now
            # The copies are from the last update; the publisher may have renewed since.
            try:
                await self._refresh()
            except (AgentError, ArtifactError) as error:
                log.info("metadata_not_refreshed error=%s", ascii(str(error)))
            expiries = await asyncio.to_thread(metadata_expiries, self._folder)
        for name, text in expiry_warnings(expiries, self._identity(), now).items():
            self._warnings.set(name, text)
