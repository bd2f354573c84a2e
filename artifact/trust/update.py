"""The server's checks of a change by the offline keys: new root, targets or publisher metadata.

Pure, like ``repository``, and as strict as the devices are:

- a new root is one version above the current and signed by enough keys of both (TUF 5.3.4), so
  that neither a thief of the new keys nor one of the old keys can replace it alone;
- the other roles are signed by the keys that their delegators name *after* the change, and are one
  version above the current;
- afterwards every delegated role verifies, so that devices can follow the change;
- a publisher's listing may only shrink, or raise its ``min_release``: publishing adds releases.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tuf.api.metadata import Root, Targets

from artifact.errors import UntrustedError
from artifact.trust.metadata import Roles, listed_releases, parse
from artifact.trust.repository import (
    OnlineSigners,
    check_delegations,
    check_root,
    checked,
    make_snapshot_timestamp,
    require,
    verify_signed_by,
)
from artifact.trust.succession import check_succession


@dataclass(frozen=True, slots=True)
class Update:
    """New versions of some roles; None or no entry for the unchanged ones."""

    root: bytes | None = None
    targets: bytes | None = None
    delegated: Mapping[str, bytes] = field(default_factory=dict)


def accept_update(
    current: Roles, update: Update, online: OnlineSigners, *, now: datetime
) -> dict[str, bytes]:
    """Return all roles that change, snapshot and timestamp among them.

    ``online`` are the keys that the root names after the change. Raises UntrustedError.
    """
    changed: dict[str, bytes] = {}
    if update.root is not None:
        _check_next_root(current["root"], update.root, online, now)
        changed["root"] = update.root
    root = parse(Root, {**current, **changed}["root"], "root").signed
    if update.targets is not None:
        _check_next_targets(root, current["targets"], update.targets, online, now)
        changed["targets"] = update.targets
    targets_data = {**current, **changed}["targets"]
    verify_signed_by(root, "targets", parse(Targets, targets_data, "targets"))
    targets = parse(Targets, targets_data, "targets").signed
    for name, data in update.delegated.items():
        _check_next_listing(targets, name, current.get(name), data, now)
        changed[name] = data
    # Also the unchanged publishers: a new targets may have replaced their keys.
    roles = {**current, **changed}
    for name in check_delegations(targets, online):
        require(name in roles, f"targets delegates to {name}, whose metadata is missing")
        verify_signed_by(targets, name, parse(Targets, roles[name], name))
    return changed | make_snapshot_timestamp(roles, online, now=now)


def installable(current: Roles) -> set[str]:
    """Return the target paths of the releases that devices accept now."""
    delegations = parse(Targets, current["targets"], "targets").signed.delegations
    return {
        path
        for publisher in (delegations.roles or {} if delegations else {})
        for path, release in listed_releases(
            parse(Targets, current[publisher], publisher).signed
        ).items()
        if release.counter >= release.min_release
    }


def _check_next_root(old: bytes, new: bytes, online: OnlineSigners, now: datetime) -> None:
    before = parse(Root, old, "root").signed
    after = check_root(new, online, now)
    require(
        after.version == before.version + 1,
        f"expected root version {before.version + 1}, got {after.version}",
        "Another change came first: start again from the current version.",
    )
    # check_root has verified the signatures of the new keys; these are those of the old ones.
    verify_signed_by(before, "root", parse(Root, new, "root"))


def _check_next_targets(
    root: Root, old: bytes, new: bytes, online: OnlineSigners, now: datetime
) -> None:
    targets = checked(root, "targets", new, now)
    version = parse(Targets, old, "targets").signed.version
    require(
        targets.version == version + 1,
        f"expected targets version {version + 1}, got {targets.version}",
        "Another change came first: start again from the current version.",
    )
    require(not targets.targets, "targets lists releases itself; only publishers may")
    check_delegations(targets, online)


def _check_next_listing(
    targets: Targets, name: str, old: bytes | None, new: bytes, now: datetime
) -> None:
    if targets.delegations is None or name not in (targets.delegations.roles or {}):
        raise UntrustedError(
            f"{name!r} is not a publisher of this repository",
            advice="Add it first: `flotilla keys add-publisher`.",
        )
    listing = checked(targets, name, new, now)
    before = parse(Targets, old, name).signed if old else None
    version = before.version if before else 0
    require(
        listing.version == version + 1,
        f"expected version {version + 1} of {name}, got {listing.version}",
        "Another publication came first: start again from the current version.",
    )
    require(listing.delegations is None, f"the metadata of {name} has delegations")
    check_succession(name, listed_releases(before) if before else {}, listed_releases(listing), "")
