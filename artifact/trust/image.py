"""Metadata of the image repository, made by the holders of offline keys.

Pure functions from keys, current metadata and the time to signed bytes. The delegations:

    root (threshold of root keys)
      -> targets (lists nothing itself) -> one role per publisher, paths ``publisher/*/*``
      -> snapshot, timestamp (the server's online keys)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from artifact.manifest import check_publishable, decode_release, target_path
from artifact.trust.metadata import Kind, listed_releases, parse
from artifact.trust.succession import check_succession, min_release

OFFLINE_LIFETIME: Final = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class OnlineKeys:
    """The server's public keys."""

    snapshot: Key
    timestamp: Key


def sign(signed: Kind, signers: Sequence[Signer]) -> bytes:
    """Return metadata with one signature per signer."""
    metadata = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def initial_root(
    signers: Sequence[Signer],
    *,
    threshold: int,
    targets_key: Key,
    online: OnlineKeys,
    now: datetime,
    lifetime: timedelta = OFFLINE_LIFETIME,
) -> bytes:
    """Make version 1 of root, signed by all root keys; ``threshold`` of them can sign the next."""
    if not 1 <= threshold <= len(signers):
        raise ValueError(f"threshold {threshold} does not fit {len(signers)} root keys")
    root = Root(version=1, expires=now + lifetime, consistent_snapshot=True)
    for signer in signers:
        root.add_key(signer.public_key, Root.type)
    root.roles[Root.type].threshold = threshold
    root.add_key(targets_key, Targets.type)
    root.add_key(online.snapshot, Snapshot.type)
    root.add_key(online.timestamp, Timestamp.type)
    return sign(root, signers)


def initial_targets(
    signer: Signer,
    publishers: Mapping[str, Key],
    *,
    now: datetime,
    lifetime: timedelta = OFFLINE_LIFETIME,
) -> bytes:
    """Make version 1 of targets, which delegates to each publisher its part of the names."""
    roles = {
        name: DelegatedRole(name, [key.keyid], 1, terminating=True, paths=[delegated_path(name)])
        for name, key in publishers.items()
    }
    keys = {key.keyid: key for key in publishers.values()}
    targets = Targets(
        version=1, expires=now + lifetime, delegations=Delegations(keys=keys, roles=roles)
    )
    return sign(targets, [signer])


def delegated_path(publisher: str) -> str:
    """Return the only paths that a publisher may list, the form of ``target_path``."""
    return f"{publisher}/*/*"


def initial_publisher(
    signer: Signer, *, now: datetime, version: int = 1, lifetime: timedelta = OFFLINE_LIFETIME
) -> bytes:
    """Make a publisher's empty role; ``version`` is above 1 if the role was removed before."""
    return sign(Targets(version=version, expires=now + lifetime), [signer])


def add_release(
    current: bytes,
    manifest: bytes,
    signer: Signer,
    *,
    now: datetime,
    lowest: int | None = None,
    hardware_classes: Sequence[str] = (),
    lifetime: timedelta = OFFLINE_LIFETIME,
) -> bytes:
    """Make the publisher's next metadata, which also lists this release.

    ``current`` must have been verified. ``lowest`` becomes the ``min_release`` of every release of
    this name; None keeps it. ``hardware_classes`` restricts the devices; empty allows all. Raises
    InvalidManifestError for an invalid manifest, UntrustedError if the release may not be added.
    """
    release = decode_release(manifest)
    check_publishable(release)
    path = target_path(release.reference)
    targets = parse(Targets, current, release.publisher).signed
    before = listed_releases(targets)
    if lowest is None:
        lowest = min_release(before, release.name)
    target = TargetFile.from_data(path, manifest, ["sha256"])
    custom: dict[str, object] = {"counter": release.counter}
    if hardware_classes:
        custom["hardware_classes"] = sorted(hardware_classes)
    target.unrecognized_fields["custom"] = custom
    targets.targets[path] = target
    for other in targets.targets.values():
        if other.path.startswith(f"{release.name}/"):
            other.unrecognized_fields["custom"] = {**other.custom, "min_release": lowest}
    check_succession(release.publisher, before, listed_releases(targets), path)
    targets.version += 1
    targets.expires = now + lifetime
    return sign(targets, [signer])
