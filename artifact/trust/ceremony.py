"""Changes to the metadata of the offline keys, on the side of the key holders.

``next_version`` takes verified metadata and an edit, and returns the next version, signed. The
server checks it by the rules of ``update``. A root that needs several key holders passes from one
to the next: each adds a signature with ``add_signature`` until none is missing.
"""

from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import DelegatedRole, Metadata, Root, Targets

from artifact.errors import UntrustedError
from artifact.trust.image import OFFLINE_LIFETIME, delegated_path, sign
from artifact.trust.metadata import Kind, listed_releases, parse
from artifact.trust.succession import below, check_succession, floor_counter, min_release


def next_version(
    kind: type[Kind],
    current: bytes,
    role: str,
    signers: Collection[Signer],
    *,
    now: datetime,
    edit: Callable[[Kind], None] = lambda _: None,
    lifetime: timedelta = OFFLINE_LIFETIME,
) -> bytes:
    """Return the role's next version: edited, with a new expiry, signed by ``signers``."""
    signed = parse(kind, current, role).signed
    edit(signed)
    signed.version += 1
    signed.expires = now + lifetime
    return sign(signed, list(signers))


def replace_key(role: str, old: str, new: Key) -> Callable[[Root], None]:
    """Return an edit that replaces the key with the id ``old`` of a top-level role by ``new``."""

    def edit(root: Root) -> None:
        root.add_key(new, role)
        remove_key(role, old)(root)

    return edit


def remove_key(role: str, key: str) -> Callable[[Root], None]:
    """Return an edit that removes a key (by id) from a top-level role.

    The edit raises UntrustedError if fewer keys than the threshold would be left.
    """

    def edit(root: Root) -> None:
        try:
            root.revoke_key(key, role)
        except ValueError as error:
            raise UntrustedError(
                f"the key {key} does not sign {role}",
                advice="`flotilla keys show` lists the keys of every role.",
            ) from error
        left, threshold = len(root.roles[role].keyids), root.roles[role].threshold
        if left < threshold:
            raise UntrustedError(
                f"without the key {key[:16]}, {role} would have {left} keys; its threshold is "
                f"{threshold}",
                advice="Replace it instead: `flotilla keys rotate`.",
            )

    return edit


def set_publisher(name: str, key: Key) -> Callable[[Targets], None]:
    """Return an edit that adds a publisher with this key, or replaces its key."""

    def edit(targets: Targets) -> None:
        remove_publisher(name)(targets)
        delegations = targets.delegations
        if delegations is None or delegations.roles is None:
            raise UntrustedError(
                "the targets metadata has no delegations", advice="Restore it from a backup."
            )
        delegations.roles[name] = DelegatedRole(
            name, [key.keyid], 1, terminating=True, paths=[delegated_path(name)]
        )
        delegations.keys[key.keyid] = key

    return edit


def remove_publisher(name: str) -> Callable[[Targets], None]:
    """Return an edit that removes a publisher, and so all of its releases."""

    def edit(targets: Targets) -> None:
        delegations = targets.delegations
        roles = delegations.roles if delegations else None
        if delegations is None or not roles or name not in roles:
            return
        gone = set(roles.pop(name).keyids)
        # A key that another publisher shares stays.
        gone -= {keyid for role in roles.values() for keyid in role.keyids}
        for keyid in gone:
            del delegations.keys[keyid]

    return edit


def delist(publisher: str, paths: Collection[str]) -> Callable[[Targets], None]:
    """Return an edit that withdraws releases by target path.

    The edit raises UntrustedError for a release that is not listed.
    """

    def edit(targets: Targets) -> None:
        for path in paths:
            if targets.targets.pop(path, None) is None:
                raise _unlisted(publisher, path)

    return edit


def raise_floor(publisher: str, path: str) -> Callable[[Targets], None]:
    """Return an edit that withdraws all releases of the same name with a lower version.

    ``min_release`` is a counter, in order of publication, and devices keep it for good. It rises
    as far as no higher version is withdrawn; lower versions that were published later, such as
    back-ported ones, are delisted.
    """

    def edit(targets: Targets) -> None:
        before = listed_releases(targets)
        if path not in before:
            raise _unlisted(publisher, path)
        name = before[path].name
        if before[path].counter < min_release(before, name):
            raise UntrustedError(
                f"{path} is below the floor of {name}: counter {before[path].counter}, "
                f"min_release {min_release(before, name)}",
                advice="The floor can be raised, not lowered.",
            )
        for withdrawn in below(before, path):
            if withdrawn.counter > floor_counter(before, path):
                del targets.targets[withdrawn.path]
        lowest = max(floor_counter(before, path), min_release(before, name))
        for target in targets.targets.values():
            if target.path.rpartition("/")[0] == name:
                target.unrecognized_fields["custom"] = {**target.custom, "min_release": lowest}
        check_succession(publisher, before, listed_releases(targets), "")

    return edit


def _reference(path: str) -> str:
    """Return publisher/name@version of a target path, as operators know it."""
    name, _, file = path.rpartition("/")
    return f"{name}@{file.removesuffix('.json')}"


def _unlisted(publisher: str, path: str) -> UntrustedError:
    return UntrustedError(
        f"{publisher} does not list {_reference(path)}",
        advice="Name a release that `flotilla release list` shows.",
    )


def add_signature(root: bytes, signer: Signer) -> bytes:
    """Return the same root with one more signature."""
    metadata = parse(Root, root, Root.type)
    metadata.sign(signer, append=True)
    return metadata.to_bytes()


def may_sign(previous: bytes, root: bytes) -> set[str]:
    """Return the ids of the keys whose signatures count for a new root."""
    return {
        keyid
        for data in (previous, root)
        for keyid in parse(Root, data, Root.type).signed.roles[Root.type].keyids
    }


def signatures_missing(previous: bytes, root: bytes) -> int:
    """Return how many more key holders must sign a new root, at least; 0 if it is complete."""
    metadata: Metadata[Root] = parse(Root, root, Root.type)
    result = metadata.signed.get_root_verification_result(
        parse(Root, previous, Root.type).signed, metadata.signed_bytes, metadata.signatures
    )
    return max(0, result.first.missing, result.second.missing)
