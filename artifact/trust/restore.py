"""Metadata that a server lost when it was restored from a backup, sent again by the key holders.

Devices have verified newer versions than the restored server has, and never accept older ones. The
key folders still contain what their holders signed or verified. Unlike ``update``, versions may be
skipped and listings may contain several new releases, since each was accepted once before. Expired
metadata is accepted too, because renewing it starts from here; devices check expiry themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from tuf.api.metadata import Root, Targets

from artifact.trust.metadata import ListedRelease, Roles, listed_releases, parse, version_of
from artifact.trust.repository import (
    OnlineSigners,
    check_delegations,
    check_root,
    checked,
    make_snapshot_timestamp,
    require,
    verify_signed_by,
)
from artifact.trust.succession import check_listing

# Before any expiry.
_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class LostMetadata:
    """Metadata from a key folder: roots in order of version, targets, and publishers by name."""

    roots: Sequence[bytes] = ()
    targets: bytes | None = None
    delegated: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Restored:
    """Metadata to store. ``roots`` are several versions of one role; ``changed`` has the others."""

    roots: Sequence[bytes]
    changed: Roles

    @property
    def restored(self) -> list[str]:
        """Names of the roles that came back, without the snapshot and the timestamp."""
        offline = sorted(set(self.changed) - {"snapshot", "timestamp"})
        return ["root", *offline] if self.roots else offline


def accept_lost(
    current: Roles,
    lost: LostMetadata,
    online_of: Callable[[bytes], OnlineSigners],
    *,
    now: datetime,
) -> Restored:
    """Check the metadata and return every role that is newer than the server's, signed online.

    ``online_of`` returns the server's keys that a root names. Raises UntrustedError if a signature
    or a rule of publication is broken.
    """
    roots = _next_roots(current["root"], lost.roots)
    root_data = roots[-1] if roots else current["root"]
    online = online_of(root_data)
    root = check_root(root_data, online, _LONG_AGO)
    changed: dict[str, bytes] = {}
    if lost.targets is not None and _is_newer("targets", lost.targets, current):
        require(
            not checked(root, "targets", lost.targets, _LONG_AGO).targets,
            "targets lists releases itself; only publishers may",
        )
        changed["targets"] = lost.targets
    targets_data = changed.get("targets", current["targets"])
    targets = checked(root, "targets", targets_data, _LONG_AGO)
    publishers = check_delegations(targets, online)
    for name, data in lost.delegated.items():
        # A publisher that the newest targets no longer names stays removed.
        if name in publishers and _is_newer(name, data, current):
            _check_listing(targets, name, current.get(name), data)
            changed[name] = data
    roles = {**current, **changed}
    for name in publishers:
        require(name in roles, f"targets delegates to {name}, whose metadata is missing")
        verify_signed_by(targets, name, parse(Targets, roles[name], name))
    if not roots and not changed:
        return Restored((), {})
    signed = make_snapshot_timestamp({**roles, "root": root_data}, online, now=now)
    return Restored(roots, changed | signed)


def listings(roles: Roles) -> list[ListedRelease]:
    """Return every release that a publisher of these roles lists."""
    delegations = parse(Targets, roles["targets"], "targets").signed.delegations
    return [
        release
        for publisher in (delegations.roles or {} if delegations else {})
        for release in listed_releases(parse(Targets, roles[publisher], publisher).signed).values()
    ]


def _next_roots(current: bytes, offered: Sequence[bytes]) -> list[bytes]:
    """Return the roots that follow the current one, each signed by itself and the one before."""
    accepted: list[bytes] = []
    for data in sorted(offered, key=lambda each: version_of("root", each)):
        before = parse(Root, accepted[-1] if accepted else current, "root").signed
        metadata = parse(Root, data, "root")
        if metadata.signed.version <= before.version:
            continue
        require(
            metadata.signed.version == before.version + 1,
            f"root version {before.version + 1} is missing before {metadata.signed.version}",
            "Restore from a key folder that has followed every change of root.",
        )
        verify_signed_by(before, "root", metadata)
        verify_signed_by(metadata.signed, "root", metadata)
        accepted.append(data)
    return accepted


def _is_newer(role: str, data: bytes, current: Roles) -> bool:
    return role not in current or version_of(role, data) > version_of(role, current[role])


def _check_listing(targets: Targets, name: str, old: bytes | None, new: bytes) -> None:
    listing = checked(targets, name, new, _LONG_AGO)
    require(listing.delegations is None, f"the metadata of {name} has delegations")
    before = listed_releases(parse(Targets, old, name).signed) if old else {}
    check_listing(name, before, listed_releases(listing))
