"""The server's side of the image repository: checks on publishing, and online signatures.

Pure functions from the newest metadata of every role, the input and the time to the roles that
change, as bytes to store in one transaction under ``file_name(role, data)``. The server checks the
same rules as devices, so that a mistake is refused at publication and not found in the field:

- a publisher's new metadata is signed by the keys that targets delegates to, not expired, and
  exactly one version above the current (so of two publications at once, one is refused);
- it has no delegations, and its listing may follow the current one (``succession``);
- the manifest sent with it is the one that it lists.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from artifact.errors import UntrustedError
from artifact.manifest import (
    QualifiedName,
    Release,
    check_publishable,
    decode_release,
    target_path,
)
from artifact.trust.image import delegated_path, sign
from artifact.trust.metadata import (
    SIGNED_AT,
    ListedRelease,
    Roles,
    listed_release,
    listed_releases,
    parse,
    refuse_expired,
    version_of,
)
from artifact.trust.succession import check_succession

_BY_KEYS = "Make it with `flotilla keys init`."
_BY_PUBLISH = "Make it with `flotilla publish`."
_TOP_LEVEL = frozenset({Root.type, Targets.type, Snapshot.type, Timestamp.type})
_OUTSIDE_SNAPSHOT = _TOP_LEVEL - {Targets.type}


@dataclass(frozen=True, slots=True)
class OnlineSigners:
    """The server's keys, and the lifetimes of the metadata that they sign.

    A device that keeps getting the same timestamp stops installing once its lifetime has passed.
    """

    snapshot: Signer
    timestamp: Signer
    snapshot_lifetime: timedelta = timedelta(days=7)
    timestamp_lifetime: timedelta = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class AcceptedRelease:
    """A release that may be published, and the metadata that publishes it.

    ``changed`` is empty if exactly this release was published before.
    """

    release: Release
    listed: ListedRelease
    changed: Roles


def initialise(
    root: bytes,
    targets: bytes,
    delegated: Mapping[str, bytes],
    online: OnlineSigners,
    *,
    now: datetime,
) -> Roles:
    """Return all roles of a new repository; UntrustedError if the metadata cannot found one."""
    root_role = check_root(root, online, now)
    require(root_role.version == 1, f"root starts at version {root_role.version}, not 1")
    targets_role = checked(root_role, Targets.type, targets, now)
    require(targets_role.version == 1, f"targets starts at version {targets_role.version}, not 1")
    require(not targets_role.targets, "targets lists releases itself; only publishers may")
    publishers = check_delegations(targets_role, online)
    require(
        set(publishers) == set(delegated),
        f"targets delegates to {sorted(publishers)}, but metadata came for {sorted(delegated)}",
    )
    for name, data in delegated.items():
        role = checked(targets_role, name, data, now)
        require(role.version == 1, f"{name} starts at version {role.version}, not 1")
        require(not role.targets and role.delegations is None, f"{name} does not start empty")
    roles = {"root": root, "targets": targets, **delegated}
    return roles | make_snapshot_timestamp(roles, online, now=now)


def accept_release(
    current: Roles, targets: bytes, manifest: bytes, online: OnlineSigners, *, now: datetime
) -> AcceptedRelease:
    """Check a publisher's new metadata and the manifest that it adds.

    Raises InvalidManifestError or UntrustedError.
    """
    release = decode_release(manifest)
    publisher = release.publisher
    if publisher not in current or publisher in _TOP_LEVEL:
        raise UntrustedError(
            f"{publisher!r} is not a publisher of this repository",
            advice="Publish under a name that `flotilla keys init` was given.",
        )
    delegator = parse(Targets, current["targets"], "targets").signed
    refuse_expired(delegator, "targets", now)
    new = checked(delegator, publisher, targets, now)
    old = parse(Targets, current[publisher], publisher).signed
    path = target_path(release.reference)
    require(path in new.targets, f"{publisher} does not list {path}", _BY_PUBLISH)
    try:
        new.targets[path].verify_length_and_hashes(manifest)
    except RepositoryError as error:
        raise UntrustedError(
            f"the manifest of {release.reference} is not the one that {publisher} signed: {error}",
            advice=_BY_PUBLISH,
        ) from error
    listed = listed_release(new.targets[path])
    require(
        listed.counter == release.counter,
        f"{path} is signed with the counter {listed.counter}; its manifest has {release.counter}",
        _BY_PUBLISH,
    )
    # A repeated publication is accepted without a change: its first answer may be lost.
    if targets == current[publisher]:
        return AcceptedRelease(release, listed, {})
    check_publishable(release)
    require(
        new.version == old.version + 1,
        f"{publisher} came with version {new.version}, the current one is {old.version}",
        "Another publication came first: run `flotilla publish` again.",
    )
    require(new.delegations is None, f"the metadata of {publisher} has delegations", _BY_PUBLISH)
    check_succession(publisher, listed_releases(old), listed_releases(new), path)
    changed = {publisher: targets}
    changed |= make_snapshot_timestamp({**current, **changed}, online, now=now)
    return AcceptedRelease(release, listed, changed)


def make_snapshot_timestamp(
    roles: Roles, online: OnlineSigners, *, now: datetime
) -> dict[str, bytes]:
    """Make the next snapshot and timestamp over these roles."""
    snapshot = Snapshot(
        version=_next_version(roles, "snapshot", now), expires=now + online.snapshot_lifetime
    )
    # Digests beside versions: the snapshot then fixes the bytes, not only the number.
    snapshot.meta = {
        f"{role}.json": MetaFile.from_data(version_of(role, data), data, ["sha256"])
        for role, data in sorted(roles.items())
        if role not in _OUTSIDE_SNAPSHOT
    }
    changed = {Snapshot.type: sign(snapshot, [online.snapshot])}
    return changed | _make_timestamp({**roles, **changed}, online, now)


def refresh(current: Roles, online: OnlineSigners, *, now: datetime) -> dict[str, bytes]:
    """Return snapshot and timestamp signed again once half of their lifetime has passed."""
    snapshot = parse(Snapshot, current["snapshot"], "snapshot").signed
    timestamp = parse(Timestamp, current["timestamp"], "timestamp").signed
    # A new snapshot needs a new timestamp; the other way round it does not.
    if snapshot.expires - now < online.snapshot_lifetime / 2:
        return make_snapshot_timestamp(current, online, now=now)
    if timestamp.expires - now < online.timestamp_lifetime / 2:
        return _make_timestamp(current, online, now)
    return {}


def _make_timestamp(roles: Roles, online: OnlineSigners, now: datetime) -> dict[str, bytes]:
    data = roles["snapshot"]
    meta = MetaFile.from_data(version_of("snapshot", data), data, ["sha256"])
    timestamp = Timestamp(
        version=_next_version(roles, "timestamp", now),
        expires=now + online.timestamp_lifetime,
        snapshot_meta=meta,
    )
    timestamp.unrecognized_fields[SIGNED_AT] = int(now.timestamp())
    return {Timestamp.type: sign(timestamp, [online.timestamp])}


def _next_version(roles: Roles, role: str, now: datetime) -> int:
    """Return the next version of an online role: the Unix time in seconds, or the last plus one.

    A server restored from a backup then continues above every version that devices have seen,
    without knowing it, since they refuse lower ones. Several versions within a second count up.
    """
    last = version_of(role, roles[role]) if role in roles else 0
    return max(last + 1, int(now.timestamp()))


def check_root(data: bytes, online: OnlineSigners, now: datetime) -> Root:
    """Parse a root; check its signatures, its settings, and that it names our online keys."""
    metadata = parse(Root, data, "root")
    root = metadata.signed
    verify_signed_by(root, Root.type, metadata)
    refuse_expired(root, "root", now)
    require(root.consistent_snapshot is True, "root does not ask for consistent snapshots")
    for role, signer in ((Snapshot.type, online.snapshot), (Timestamp.type, online.timestamp)):
        key = signer.public_key
        require(
            root.roles[role].keyids == [key.keyid] and root.keys.get(key.keyid) == key,
            f"root does not name this server's key {key.keyid} for {role}",
            "The keys are for another server: run `flotilla keys init --dir` with a new folder.",
        )
    for role in (Root.type, Targets.type):
        _refuse_online(role, root.roles[role].keyids, online)
    return root


def check_delegations(targets: Targets, online: OnlineSigners) -> list[str]:
    """Return the publishers' names; check their paths, and that no key is this server's."""
    roles = targets.delegations.roles if targets.delegations else None
    if not roles:
        raise UntrustedError("targets has no publishers", advice=_BY_KEYS)
    for name, role in roles.items():
        try:
            msgspec.convert(f"{name}/any", QualifiedName)
        except msgspec.ValidationError as error:
            raise UntrustedError(
                f"{name!r} cannot be a publisher's name",
                advice="Use up to 39 lower-case letters, digits and dashes.",
            ) from error
        require(
            role.paths == [delegated_path(name)],
            f"targets grants {role.paths} to {name}; expected {delegated_path(name)!r} alone",
        )
        _refuse_online(name, role.keyids, online)
    return list(roles)


def _refuse_online(role: str, keyids: list[str], online: OnlineSigners) -> None:
    # A stolen server could sign for itself what only offline keys should.
    held = {online.snapshot.public_key.keyid, online.timestamp.public_key.keyid}
    require(held.isdisjoint(keyids), f"{role} accepts a key that this server holds")


def checked(delegator: Root | Targets, role: str, data: bytes, now: datetime) -> Targets:
    """Parse targets metadata; check its delegator's signatures and its expiry."""
    metadata = parse(Targets, data, role)
    verify_signed_by(delegator, role, metadata)
    refuse_expired(metadata.signed, role, now)
    return metadata.signed


def verify_signed_by(
    delegator: Root | Targets, role: str, metadata: Metadata[Root] | Metadata[Targets]
) -> None:
    """Raise UntrustedError unless enough of the keys that the delegator names have signed."""
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        raise UntrustedError(
            f"the {role} metadata is not signed by enough of its keys: {error}",
            advice=f"Sign it with the keys that were set for {role}.",
        ) from error


def require(condition: bool, message: str, advice: str = _BY_KEYS) -> None:
    """Raise UntrustedError unless the condition holds."""
    if not condition:
        raise UntrustedError(message, advice=advice)
