"""The director repository: what one device should run now, signed by the server's online keys.

Each device has a repository that consists of the common root and three small files: timestamp,
snapshot and targets, which come with the assignment. Targets has no delegations, names the device
and the assignment's generation, and lists the wanted release or no release. The director alone
cannot make a device install anything: the publisher must list the same release (``statements``).

The signed content depends only on the assignment and on the days since it was made. So the server
stores none of it, and every replica signs the same bytes. The version combines the generation and
the renewals, so it rises with each assignment and with each renewal.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from securesystemslib.signer import Key, Signer
from tuf.api.metadata import MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from artifact.errors import DisagreementError, UntrustedError
from artifact.manifest import target_path
from artifact.trust.ceremony import next_version, replace_key
from artifact.trust.client import TufClient
from artifact.trust.floors import Floors
from artifact.trust.image import sign
from artifact.trust.metadata import SIGNED_AT, parse
from artifact.trust.statements import (
    MAX_ROOTS,
    NOT_THE_TRUSTED_ONE,
    DirectedRelease,
    Directive,
    DirectorMetadata,
)

DIRECTOR: Final = "director"
ROOT_LIFETIME: Final = timedelta(days=3650)
LIFETIME: Final = timedelta(days=7)
RENEWED_EVERY: Final = timedelta(days=1)
# Renewals of one assignment before its versions would reach those of the next generation.
_RENEWALS: Final = 1 << 20


class _Addressee(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device_id: Annotated[str, Meta(min_length=1, max_length=64)]
    generation: Annotated[int, Meta(ge=1, le=1 << 32)]


class _Custom(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    counter: Annotated[int, Meta(ge=1, le=1 << 53)]


def make_director_root(root: Signer, online: Signer, *, now: datetime) -> bytes:
    """Make the first root; ``online`` signs the other roles of every device."""
    signed = Root(version=1, expires=now + ROOT_LIFETIME, consistent_snapshot=True)
    signed.add_key(root.public_key, Root.type)
    for role in (Targets.type, Snapshot.type, Timestamp.type):
        signed.add_key(online.public_key, role)
    return sign(signed, [root])


def next_director_root(
    current: bytes, root: Signer, *, now: datetime, successor: Signer | None, online: Key | None
) -> bytes:
    """Make the root after ``current``, signed by its key ``root``.

    ``successor`` replaces that key and signs too; ``online`` replaces the key of the other roles.
    """

    def edit(signed: Root) -> None:
        if successor is not None:
            replace_key(Root.type, root.public_key.keyid, successor.public_key)(signed)
        if online is not None:
            # One key signs all three, so that each has exactly one.
            for role in (Targets.type, Snapshot.type, Timestamp.type):
                (old,) = signed.roles[role].keyids
                replace_key(role, old, online)(signed)

    signers = [root] if successor is None else [root, successor]
    return next_version(
        Root, current, Root.type, signers, now=now, edit=edit, lifetime=ROOT_LIFETIME
    )


def direct(
    directive: Directive,
    online: Signer,
    *,
    assigned_at: datetime,
    now: datetime,
    roots: tuple[bytes, ...] = (),
) -> DirectorMetadata:
    """Sign the three files of a directive.

    ``roots`` lead from the first root to the one that names ``online``.
    """
    # Bounded below for a clock that was set back, and above to stay under the next generation.
    renewals = min(max(0, (now - assigned_at) // RENEWED_EVERY), _RENEWALS - 1)
    version = directive.generation * _RENEWALS + renewals
    expires = (assigned_at + renewals * RENEWED_EVERY + LIFETIME).replace(microsecond=0)
    targets = Targets(version=version, expires=expires)
    targets.unrecognized_fields["custom"] = {
        "device_id": directive.device_id,
        "generation": directive.generation,
    }
    wanted = directive.release
    if wanted is not None:
        path = target_path(wanted.reference)
        target = TargetFile(wanted.length, {"sha256": wanted.sha256}, path)
        target.unrecognized_fields["custom"] = {"counter": wanted.counter}
        targets.targets[path] = target
    snapshot = Snapshot(version=version, expires=expires)
    snapshot.meta["targets.json"] = MetaFile(version)
    timestamp = Timestamp(version=version, expires=expires, snapshot_meta=MetaFile(version))
    # At or before ``now``, and like all else a function of the assignment and the renewals alone.
    timestamp.unrecognized_fields[SIGNED_AT] = int((expires - LIFETIME).timestamp())
    signers = [online]
    return DirectorMetadata(
        sign(timestamp, signers), sign(snapshot, signers), sign(targets, signers), roots
    )


class DirectorVerifier:
    """Verifies the director's metadata on one device; blocks, see ``client``.

    The files arrive complete with every assignment, so only the floors are stored.
    """

    def __init__(
        self, root: bytes, device_id: str, *, clock: Callable[[], datetime], floors: Floors
    ) -> None:
        """``root`` is the one whose digest the join token contains."""
        self._device_id = device_id
        self._files: dict[str, bytes] = {}
        self._client = TufClient(DIRECTOR, None, root, self._files.get, clock=clock, floors=floors)

    def directive(self, metadata: DirectorMetadata) -> Directive:
        """Return the directive of these files.

        Raises UntrustedError if they are not the director's, older than accepted ones, or for
        another device. ExpiredMetadataError and ClockSetBackError are subclasses.
        """
        version = parse(Timestamp, metadata.timestamp, "timestamp").signed.snapshot_meta.version
        snapshot = parse(Snapshot, metadata.snapshot, "snapshot").signed
        listed = snapshot.meta.get("targets.json")
        # The verifier fetches by name; the files of an earlier assignment must not be found.
        self._files.clear()
        # Further roots would not be followed.
        for number, root in enumerate(metadata.roots[:MAX_ROOTS], start=2):
            self._files[f"{number}.root.json"] = root
        self._files["timestamp.json"] = metadata.timestamp
        self._files[f"{version}.snapshot.json"] = metadata.snapshot
        self._files[f"{listed.version if listed else 0}.targets.json"] = metadata.targets
        targets = self._client.walk("the assignment").targets()
        if targets is None or targets.delegations is not None or len(targets.targets) > 1:
            raise UntrustedError(
                "the director's targets delegate, or list several releases",
                advice=NOT_THE_TRUSTED_ONE,
            )
        directive = _directive(targets)
        if directive.device_id != self._device_id:
            raise DisagreementError(
                f"the assignment is for the device {directive.device_id!a}; "
                f"this is {self._device_id}",
                advice=NOT_THE_TRUSTED_ONE,
            )
        return directive


def _directive(targets: Targets) -> Directive:
    try:
        addressee = msgspec.convert(targets.unrecognized_fields.get("custom"), _Addressee)
        releases = [_directed(target) for target in targets.targets.values()]
    except (msgspec.ValidationError, KeyError) as error:
        raise UntrustedError(
            f"the assignment's targets cannot be read: {error}",
            advice="Update this agent, or the server.",
        ) from error
    return Directive(addressee.device_id, addressee.generation, releases[0] if releases else None)


def _directed(target: TargetFile) -> DirectedRelease:
    custom = msgspec.convert(target.custom, _Custom)
    # A path of another form gives a text that equals no reference, and stands so in the error.
    name, _, file = target.path.rpartition("/")
    reference = f"{name}@{file.removesuffix('.json')}"
    return DirectedRelease(reference, target.length, target.hashes["sha256"], custom.counter)
