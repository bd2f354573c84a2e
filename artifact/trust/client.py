"""The TUF client workflow, for either repository, with durable version floors.

python-tuf's ``Updater`` does the workflow, over metadata that a callable fetches by name. It stores
metadata in files without fsync, so after a power cut it can accept older metadata than before.
``Floors`` are stored durably instead, and never fall:

- the highest version of each role, per repository and per set of keys that vouches for it: the
  role's own keys and, for roles that the snapshot lists, the snapshot's. When root replaces these
  keys the role's floor starts again, so that a thief of the old keys cannot use up the versions
  (fast-forward recovery, TUF 5.3.11);
- the latest time at which a timestamp says that it was signed, likewise per set of keys: setting
  the clock back cannot make expired metadata valid again. The machine's own clock never sets this
  floor: after it was ahead once, the device would refuse everything until that time has passed.

Calls block, because they verify signatures and write the cache: an event loop uses a thread. Only
one call may run at a time, because python-tuf's cache is a folder of files.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.metadata import Root, Signed, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from artifact import errors
from artifact.errors import ClockSetBackError, UntrustedError
from artifact.trust.floors import Floors
from artifact.trust.metadata import MAX_METADATA_BYTES, SIGNED_AT
from artifact.trust.statements import NOT_THE_TRUSTED_ONE

log = logging.getLogger(__name__)

FetchMetadata = Callable[[str], bytes | None]
"""Fetches metadata by name (timestamp.json, 3.root.json); None if there is no such file.

Its exceptions pass through unchanged: a network failure is not a failure of trust.
"""

MAX_VERSION: Final = 1 << 53
# Targets and the publisher that it delegates to, with a small reserve.
MAX_DELEGATIONS: Final = 4
# Normal corrections of a clock: seconds, or an hour where local time was set as UTC.
CLOCK_TOLERANCE: Final = timedelta(hours=1)

_BASE: Final = "metadata:/"
_NOT_FOUND: Final = 404
_FELL_BACK: Final = (
    "If the server was restored from a backup, its operator runs `flotilla keys restore`. "
    + NOT_THE_TRUSTED_ONE
)
_EXPIRED: Final = (
    "If this machine's clock is wrong, set it (timedatectl, NTP). If it is right, the metadata has "
    "to be signed again: see `flotilla keys show` and the server's log. What runs keeps running."
)
_BEHIND: Final = (
    "Set this machine's clock (timedatectl, NTP); if it is right, the server's clock is ahead. "
    "What runs keeps running, and the update continues once the clocks agree."
)


@dataclass(frozen=True, slots=True)
class Walk:
    """The metadata that one run of the workflow verified.

    ``found`` has an entry per requested path, in order; None if no role lists it.
    """

    roles: Mapping[str, Signed]
    found: Sequence[TargetFile | None]

    @property
    def versions(self) -> dict[str, int]:
        """Version of the metadata, by role."""
        return {role: signed.version for role, signed in self.roles.items()}

    def targets(self, role: str = Targets.type) -> Targets | None:
        """Return the metadata of a role that lists targets; None if the walk did not load it."""
        signed = self.roles.get(role)
        return signed if isinstance(signed, Targets) else None


class TufClient:
    """A client of one repository, starting from its first root."""

    def __init__(
        self,
        repository: str,
        cache: Path | None,
        root: bytes,
        fetch: FetchMetadata,
        *,
        clock: Callable[[], datetime],
        floors: Floors | None = None,
        max_delegations: int = MAX_DELEGATIONS,
    ) -> None:
        """Make a client.

        ``repository`` is the prefix of its floors; ``cache`` is a folder that only it uses. Either
        ``cache`` or ``floors`` may be left out.
        """
        self._max_delegations = max_delegations
        self._repository = repository
        self._cache = cache
        self._root = root
        self._fetcher = _Fetcher(fetch)
        self._clock = clock
        self._floors = floors

    def walk(self, subject: str, *paths: str) -> Walk:
        """Verify the newest top-level metadata and the roles that list these target paths.

        ``subject`` stands in error messages. Raises UntrustedError if any metadata fails. Its
        subclasses ExpiredMetadataError and ClockSetBackError do not affect running releases.
        """
        now = self._clock()
        floors = dict(self._floors.floors()) if self._floors else {}
        updater = self._updater(subject, now)
        try:
            updater.refresh()
            found = [updater.get_targetinfo(path) for path in paths]
        except ExpiredMetadataError as error:
            self._remember(updater)
            raise errors.ExpiredMetadataError(
                f"{subject} cannot be verified: {error}; this machine's clock says "
                f"{now.isoformat(timespec='seconds')}",
                advice=_EXPIRED,
            ) from error
        except (DownloadError, RepositoryError) as error:
            # Verified roles raise their floors although a later one failed.
            self._remember(updater)
            # A failed fetch keeps its own type: it says nothing about trust.
            if isinstance(error, DownloadError) and error.__cause__ is not None:
                raise error.__cause__ from None
            fell_back = isinstance(error, BadVersionNumberError)
            raise UntrustedError(
                f"{subject} cannot be verified: {error}",
                advice=_FELL_BACK if fell_back else NOT_THE_TRUSTED_ONE,
            ) from error
        # Without floors there is no durable time; the renewal of expired metadata passes a clock
        # of long ago on purpose.
        if self._floors is not None:
            self._check_clock(now, updater, floors)
        _check_floors(self._numbers(updater), floors)
        self._remember(updater)
        return Walk(_roles(updater), found)

    def _updater(self, subject: str, now: datetime) -> Updater:
        if self._cache is not None:
            self._cache.mkdir(parents=True, exist_ok=True)
        kind = _Uncached if self._cache is None else Updater
        config = UpdaterConfig(
            max_delegations=self._max_delegations,
            snapshot_max_length=MAX_METADATA_BYTES,
            targets_max_length=MAX_METADATA_BYTES,
        )
        try:
            updater = kind(
                str(self._cache or os.devnull),
                _BASE,
                fetcher=self._fetcher,
                config=config,
                bootstrap=self._root,
            )
        except RepositoryError as error:
            raise UntrustedError(
                f"{subject} cannot be verified: the first root is damaged: {error}",
                advice="Restore it from a backup, or enrol the box again.",
            ) from error
        # python-tuf reads the clock itself; there is no public way to set the reference time.
        updater._trusted_set.reference_time = now  # noqa: SLF001
        return updater

    def _numbers(self, updater: Updater) -> dict[str, int]:
        """Return the version floor of each role that was verified, even if a later one failed."""
        roles = _roles(updater)
        return {
            f"{self._repository}/{role}{_vouchers(roles, role)}": signed.version
            for role, signed in roles.items()
        }

    def _signed_times(self, updater: Updater) -> dict[str, int]:
        """Return the floor of time that the timestamp sets; empty if it does not state one."""
        roles = _roles(updater)
        timestamp = roles.get(Timestamp.type)
        stated = timestamp.unrecognized_fields.get(SIGNED_AT) if timestamp else None
        if timestamp is None or not isinstance(stated, int):
            return {}
        # A thief of the key can state any time; bound it by the expiry.
        bounded = max(0, min(stated, int(timestamp.expires.timestamp())))
        return {f"{self._repository}/{SIGNED_AT}{_vouchers(roles, Timestamp.type)}": bounded}

    def _check_clock(self, now: datetime, updater: Updater, floors: Mapping[str, int]) -> None:
        for name, stated in self._signed_times(updater).items():
            behind = max(stated, floors.get(name, 0)) - now.timestamp()
            if behind > CLOCK_TOLERANCE.total_seconds():
                raise ClockSetBackError(
                    f"this machine's clock says {now.isoformat(timespec='seconds')}, "
                    f"{behind:.0f} s before the server's latest signature",
                    advice=_BEHIND,
                )

    def _remember(self, updater: Updater) -> None:
        """Raise the floors to everything in the updater, which holds only signed metadata."""
        if self._floors is not None:
            numbers = self._numbers(updater) | self._signed_times(updater)
            self._floors.raise_floors(
                {name: min(number, MAX_VERSION) for name, number in numbers.items()}
            )


def _roles(updater: Updater) -> dict[str, Signed]:
    # The Updater has no public accessor. Its own mapping iterates over values, not over keys.
    return dict(updater._trusted_set._trusted_set)  # noqa: SLF001


def _vouchers(roles: Mapping[str, Signed], role: str) -> str:
    """Return a suffix that identifies the keys behind a role's version; none for root.

    Root's versions form one chain across all its keys.
    """
    root, targets = roles[Root.type], roles.get(Targets.type)
    if role == Root.type or not isinstance(root, Root):
        return ""
    if role in (Timestamp.type, Snapshot.type):
        keyids = root.roles[role].keyids
    else:
        # The snapshot lists this version, so a thief of its key could raise it too.
        keyids = root.roles[Snapshot.type].keyids + _keyids(root, targets, role)
    return "@" + hashlib.sha256("\n".join(sorted(keyids)).encode()).hexdigest()[:16]


def _keyids(root: Root, targets: Signed | None, role: str) -> list[str]:
    if role == Targets.type:
        return root.roles[role].keyids
    delegations = targets.delegations if isinstance(targets, Targets) else None
    delegated = (delegations.roles or {}).get(role) if delegations else None
    return delegated.keyids if delegated else []


def _check_floors(numbers: Mapping[str, int], floors: Mapping[str, int]) -> None:
    for name, number in numbers.items():
        role = name.partition("@")[0]
        if number > MAX_VERSION:
            raise UntrustedError(
                f"the {role} metadata has the version {number}; the maximum is {MAX_VERSION}",
                advice=NOT_THE_TRUSTED_ONE,
            )
        if number < floors.get(name, 0):
            raise UntrustedError(
                f"the {role} metadata fell back from version {floors[name]} to {number}",
                advice=_FELL_BACK,
            )


class _Uncached(Updater):
    """An updater without files, for metadata that arrives complete every time."""

    def _load_local_metadata(self, rolename: str) -> bytes:
        raise FileNotFoundError(rolename)

    def _persist_metadata(self, rolename: str, data: bytes) -> None:
        """Do not store."""

    def _persist_root(self, version: int, data: bytes) -> None:
        """Do not store."""

    def _update_root_symlink(self) -> None:
        """Do not store."""


class _Fetcher(FetcherInterface):
    """python-tuf's network, in memory: no temporary file, no HTTP."""

    def __init__(self, fetch: FetchMetadata) -> None:
        self._fetch_metadata = fetch

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = unquote(url.removeprefix(_BASE))
        data = self._fetch_metadata(name)
        if data is None:
            raise DownloadHTTPError(f"there is no metadata {name}", _NOT_FOUND)
        log.debug("metadata_fetched name=%s bytes=%d", name, len(data))
        return iter((data,))

    def download_bytes(self, url: str, max_length: int) -> bytes:
        data = b"".join(self.fetch(url))
        if len(data) > max_length:
            raise DownloadLengthMismatchError(
                f"{url.removeprefix(_BASE)} has {len(data)} bytes; the maximum is {max_length}"
            )
        return data
