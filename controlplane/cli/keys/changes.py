"""`flotilla keys add-publisher`, `rotate`, `revoke`, `renew`: changes signed by offline keys.

A new key is written first and takes the old one's name only after the server has accepted the
change, so that an interrupted command can be run again.
"""

from pathlib import Path

import click
from flotilla.v1 import model_pb2, server_keys_pb2, server_keys_pb2_grpc
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from artifact.trust.ceremony import (
    remove_key,
    remove_publisher,
    replace_key,
    set_publisher,
)
from artifact.trust.image import initial_publisher
from artifact.trust.keys import decode_public_key
from artifact.trust.update import Update
from controlplane.cli.app import GlobalOptions, RefusedError, pass_settings
from controlplane.cli.client import TIMEOUT_SECONDS, connect, request_id
from controlplane.cli.confirmation import confirm, confirmed
from controlplane.cli.keys.ceremony import KeyWork, key_work
from controlplane.cli.keys.folder import (
    DIRECTOR,
    DIRECTOR_ROOT,
    check_publisher,
    folder_option,
    passphrase_option,
)
from controlplane.cli.keys.preview import confirm_withdrawal, withdrawn_by
from controlplane.cli.output import print_json

MIN_KEY_DIGITS = 8


@click.command("add-publisher")
@click.argument("name")
@folder_option
@passphrase_option
@pass_settings
def add_publisher(
    settings: GlobalOptions, *, name: str, folder: Path, passphrase_file: Path | None
) -> None:
    """Allow NAME to publish releases called NAME/...

    Needs the targets key. The new publisher's key is made in DIR. A publisher that was revoked may
    come back, and then lists nothing of what it listed before.
    """
    check_publisher(name)
    with key_work(settings, folder, passphrase_file) as work:
        if name in work.publishers:
            raise RefusedError(
                f"{name!r} is a publisher already",
                advice="`flotilla keys rotate` gives it another key.",
            )
        signer = work.folder.load_or_make(work.folder.publisher_key(name), work.passphrase)
        targets = work.next_targets(set_publisher(name, signer.public_key), work.targets_signer())
        listing = initial_publisher(signer, now=work.now, version=work.last_version(name) + 1)
        work.finish(Update(targets=targets, delegated={name: listing}), f"{name} may publish now.")


@click.command()
@click.argument("role")
@click.option("--key", metavar="KEYID", help="Which root key; needed when DIR holds several.")
@folder_option
@passphrase_option
@pass_settings
def rotate(
    settings: GlobalOptions,
    *,
    role: str,
    key: str | None,
    folder: Path,
    passphrase_file: Path | None,
) -> None:
    """Give ROLE a new key: root, targets, snapshot, timestamp, or a publisher's name.

    The old key is worth nothing afterwards. Keys of root, targets and publishers are made in DIR;
    the server has made its own already.

    director and director-root are the server's alone: it replaces the key that signs assignments,
    or the one that vouches for that, at once, and needs nothing of DIR.
    """
    if role in (DIRECTOR, DIRECTOR_ROOT):
        _rotate_director(settings, root=role == DIRECTOR_ROOT)
        return
    with key_work(settings, folder, passphrase_file) as work:
        if role == Root.type:
            _rotate_root(work, key)
        elif role == Targets.type:
            _rotate_targets(work)
        elif role in (Snapshot.type, Timestamp.type):
            _rotate_online(work, role)
        else:
            _rotate_publisher(work, role)


def _rotate_director(settings: GlobalOptions, *, root: bool) -> None:
    with connect(settings) as channel:
        version = (
            server_keys_pb2_grpc.ServerKeyServiceStub(channel)
            .RotateDirectorKey(
                server_keys_pb2.RotateDirectorKeyRequest(request_id=request_id(), root=root),
                timeout=TIMEOUT_SECONDS,
            )
            .root_version
        )
    if settings.json:
        print_json({"director_root_version": version})
        return
    click.echo(
        f"The director's {'root ' if root else ''}key is replaced, in version {version} of its "
        "root. Devices learn of it with their next assignment."
    )


def _rotate_root(work: KeyWork, key: str | None) -> None:
    held = {
        work.signer(path).public_key.keyid: path
        for path in sorted(work.folder.path.glob("root-*.pem"))
        if not path.name.endswith("-next.pem")
    }
    current = set(work.root.roles[Root.type].keyids) & set(held)
    wanted = [keyid for keyid in current if key is None or keyid.startswith(key)]
    if len(wanted) != 1:
        raise RefusedError(
            f"{len(wanted)} root keys in {work.folder.path} are meant, not one",
            advice=f"Name one with --key: {', '.join(sorted(current)) or 'there is none here'}.",
        )
    path = held[wanted[0]]
    successor = work.successor(path)
    root = work.next_root(replace_key(Root.type, wanted[0], successor.public_key))
    work.finish(Update(root=root), "The root key is replaced.", path)


def _rotate_targets(work: KeyWork) -> None:
    (old,) = work.root.roles[Targets.type].keyids
    successor = work.successor(work.folder.targets_key)
    root = work.next_root(replace_key(Targets.type, old, successor.public_key))
    targets = work.next_targets(lambda _: None, successor)
    update = Update(root=root, targets=targets)
    work.finish(update, "The targets key is replaced.", work.folder.targets_key)


def _rotate_online(work: KeyWork, role: str) -> None:
    trust = work.stub.GetTrust(model_pb2.GetTrustRequest(), timeout=TIMEOUT_SECONDS)
    following = trust.next_snapshot_key if role == Snapshot.type else trust.next_timestamp_key
    (old,) = work.root.roles[role].keyids
    root = work.next_root(replace_key(role, old, decode_public_key(following)))
    work.finish(Update(root=root), f"The server's {role} key is replaced.")


def _rotate_publisher(work: KeyWork, name: str) -> None:
    path = work.folder.publisher_key(name)
    if name not in work.publishers:
        raise RefusedError(
            f"{name!r} is neither a role nor a publisher",
            advice="Use root, targets, snapshot, timestamp, director, director-root or "
            f"{', '.join(work.publishers)}.",
        )
    successor = work.successor(path)
    targets = work.next_targets(set_publisher(name, successor.public_key), work.targets_signer())
    listing = work.next_listing(name, successor)
    update = Update(targets=targets, delegated={name: listing})
    work.finish(update, f"{name}'s key is replaced.", path)


@click.command()
@click.argument("key")
@folder_option
@passphrase_option
@confirmed
@pass_settings
def revoke(
    settings: GlobalOptions,
    *,
    key: str,
    folder: Path,
    passphrase_file: Path | None,
    yes: bool,
    dry_run: bool,
) -> None:
    """Revoke KEY, a root key's id or a publisher's name, without a successor.

    Of a publisher that is revoked nothing is installed any more. Of root as many keys must be left
    as its threshold says.
    """
    with key_work(settings, folder, passphrase_file) as work:
        publishers = [name for name, keyid in work.publishers.items() if key in {name, keyid}]
        if publishers:
            targets = work.next_targets(remove_publisher(publishers[0]), work.targets_signer())
            gone = withdrawn_by(work.roles, {"targets": targets})
            if not confirm_withdrawal(settings, gone, yes=yes, dry_run=dry_run):
                return
            work.finish(Update(targets=targets), f"{publishers[0]} may publish no more.")
            return
        matching = [
            keyid
            for keyid in work.root.roles[Root.type].keyids
            if len(key) >= MIN_KEY_DIGITS and keyid.startswith(key)
        ]
        if len(matching) != 1:
            raise RefusedError(
                f"{key!r} is neither a publisher nor a root key",
                advice="`flotilla keys show` lists them; targets, snapshot and timestamp need a "
                "key, so replace theirs with `flotilla keys rotate`.",
            )
        root = work.next_root(remove_key(Root.type, matching[0]))
        preview = [f"The root key {matching[0]} never signs again."]
        if not confirm(settings, preview, yes=yes, dry_run=dry_run):
            return
        work.finish(Update(root=root), f"The root key {matching[0][:16]} is revoked.")


@click.command()
@folder_option
@passphrase_option
@pass_settings
def renew(settings: GlobalOptions, *, folder: Path, passphrase_file: Path | None) -> None:
    """Renew the metadata signed by the keys in DIR for another year, expired or not."""
    with key_work(settings, folder, passphrase_file) as work:
        held = work.folder
        root = work.next_root() if list(held.path.glob("root-*.pem")) else None
        targets = None
        if held.targets_key.exists():
            targets = work.next_targets(lambda _: None, work.targets_signer())
        delegated = {
            name: work.next_listing(name, work.signer(held.publisher_key(name)))
            for name in work.publishers
            if held.publisher_key(name).exists()
        }
        if root is None and targets is None and not delegated:
            raise RefusedError(
                f"there is no key in {held.path}", advice="Name the folder with --dir."
            )
        work.finish(Update(root, targets, delegated), "Renewed for a year.")
