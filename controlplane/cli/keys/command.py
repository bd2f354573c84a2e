"""`flotilla keys`: the offline keys, which never leave the operator's side."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from flotilla.v1 import model_pb2, model_pb2_grpc
from tuf.api.metadata import Root, Targets

from artifact.trust.expiry import days_left
from artifact.trust.image import OnlineKeys, initial_publisher, initial_root, initial_targets
from artifact.trust.keys import decode_public_key
from artifact.trust.metadata import parse
from artifact.trust.statements import EXPIRY_WARNING
from controlplane.cli.app import GlobalOptions, RefusedError, pass_settings
from controlplane.cli.client import TIMEOUT_SECONDS, connect, request_id
from controlplane.cli.keys.changes import add_publisher, renew, revoke, rotate
from controlplane.cli.keys.folder import (
    KeyFolder,
    check_publisher,
    folder_option,
    passphrase_option,
    read_passphrase,
)
from controlplane.cli.keys.restore import restore
from controlplane.cli.keys.signing import send, sign
from controlplane.cli.output import note, print_fields, print_json, print_table

MAX_ROOT_KEYS = 16


@dataclass(frozen=True, slots=True)
class FoundingPlan:
    """Arguments of `keys init`."""

    publishers: tuple[str, ...]
    root_keys: int
    root_threshold: int


@click.group()
def keys() -> None:
    """Create and change the offline signing keys."""


for command in (add_publisher, rotate, revoke, renew, sign, send, restore):
    keys.add_command(command)


@keys.command()
@folder_option
@click.option(
    "--publisher",
    "publishers",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Who publishes; releases are named NAME/... Repeat it for several.",
)
@click.option("--root-keys", type=click.IntRange(1, MAX_ROOT_KEYS), default=1, show_default=True)
@click.option(
    "--root-threshold",
    type=click.IntRange(1, MAX_ROOT_KEYS),
    default=1,
    show_default=True,
    help="How many root keys must sign a new root.",
)
@passphrase_option
@pass_settings
def init(
    settings: GlobalOptions,
    *,
    folder: Path,
    publishers: tuple[str, ...],
    root_keys: int,
    root_threshold: int,
    passphrase_file: Path | None,
) -> None:
    """Create keys, and initialise the server's image repository with them.

    The private keys stay in DIR, encrypted; the server gets signed metadata. Safe to run again: it
    goes on where it stopped, and says so when there is nothing left to do.
    """
    if root_threshold > root_keys:
        raise click.UsageError(f"--root-threshold {root_threshold} exceeds --root-keys {root_keys}")
    plan = FoundingPlan(tuple(dict.fromkeys(publishers)), root_keys, root_threshold)
    for name in plan.publishers:
        check_publisher(name)
    key_folder = KeyFolder(folder.expanduser())
    with connect(settings) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        trust = stub.GetTrust(model_pb2.GetTrustRequest(), timeout=TIMEOUT_SECONDS)
        if trust.root_version:
            _check_same_root(stub, key_folder)
        else:
            if not key_folder.is_signed:
                passphrase = read_passphrase(passphrase_file, confirm=not key_folder.key_files())
                _sign_first(key_folder, plan, passphrase, _online_keys(trust))
            _found(stub, key_folder)
    _check_delegated(key_folder, plan.publishers)
    _report(settings, key_folder, founded=not trust.root_version)


def _check_same_root(stub: model_pb2_grpc.ModelServiceStub, folder: KeyFolder) -> None:
    name = folder.first_metadata(Root.type).name
    answer = stub.GetMetadata(model_pb2.GetMetadataRequest(name=name), timeout=TIMEOUT_SECONDS)
    if not folder.is_signed or folder.read_first(Root.type) != answer.data:
        raise RefusedError(
            f"this server trusts another root than the one in {folder.path}",
            advice="Name the folder that it was founded with by --dir; a server is founded once.",
        )


def _online_keys(trust: model_pb2.GetTrustResponse) -> OnlineKeys:
    return OnlineKeys(decode_public_key(trust.snapshot_key), decode_public_key(trust.timestamp_key))


def _sign_first(folder: KeyFolder, plan: FoundingPlan, passphrase: str, online: OnlineKeys) -> None:
    """Sign the first metadata; the root comes last, so that its presence means all is signed."""
    folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    now = datetime.now(UTC)
    roots = [
        folder.load_or_make(folder.root_key(number), passphrase)
        for number in range(1, plan.root_keys + 1)
    ]
    targets = folder.load_or_make(folder.targets_key, passphrase)
    publishers = {
        name: folder.load_or_make(folder.publisher_key(name), passphrase)
        for name in plan.publishers
    }
    for name, signer in publishers.items():
        folder.write_first(name, initial_publisher(signer, now=now))
    public = {name: signer.public_key for name, signer in publishers.items()}
    folder.write_first(Targets.type, initial_targets(targets, public, now=now))
    root = initial_root(
        roots,
        threshold=plan.root_threshold,
        targets_key=targets.public_key,
        online=online,
        now=now,
    )
    folder.write_first(Root.type, root)


def _found(stub: model_pb2_grpc.ModelServiceStub, folder: KeyFolder) -> None:
    stub.InitializeTrust(
        model_pb2.InitializeTrustRequest(
            request_id=request_id(),
            root=folder.read_first(Root.type),
            targets=folder.read_first(Targets.type),
            delegated={name: folder.read_first(name) for name in _delegated(folder)},
        ),
        timeout=TIMEOUT_SECONDS,
    )


def _delegated(folder: KeyFolder) -> list[str]:
    data = folder.read_first(Targets.type)
    delegations = parse(Targets, data, Targets.type).signed.delegations
    return sorted(delegations.roles or ()) if delegations else []


def _check_delegated(folder: KeyFolder, publishers: tuple[str, ...]) -> None:
    known = _delegated(folder)
    for name in publishers:
        if name not in known:
            raise RefusedError(
                f"this server was founded without the publisher {name!r}",
                advice=f"It knows {', '.join(known)}; `flotilla keys add-publisher` adds another.",
            )


def _report(settings: GlobalOptions, folder: KeyFolder, *, founded: bool) -> None:
    root = folder.read_first(Root.type)
    fields = {
        "dir": str(folder.path),
        "root_sha256": _sha256(root),
        "publishers": _delegated(folder),
        "founded": founded,
    }
    if settings.json:
        print_json(fields)
        return
    click.echo(
        "The server's image repository is initialised."
        if founded
        else "Already done: the server trusts this root."
    )
    print_fields(
        {
            "keys": str(folder.path),
            "root": f"sha256 {fields['root_sha256']}",
            "publishers": ", ".join(_delegated(folder)),
        }
    )
    if founded:
        note("Back up the folder and its passphrase: without them nothing can be published again.")


@keys.command()
@folder_option
@pass_settings
def show(settings: GlobalOptions, folder: Path) -> None:
    """Show which keys sign what and until when, as verified last in this folder."""
    key_folder = KeyFolder(folder.expanduser())
    first = key_folder.read_first(Root.type)
    roles = list(_roles(key_folder))
    if settings.json:
        print_json({"dir": str(key_folder.path), "root_sha256": _sha256(first), "roles": roles})
        return
    print_fields({"keys": str(key_folder.path), "first root": f"sha256 {_sha256(first)}"})
    print_table(
        ("ROLE", "SIGNED BY", "THRESHOLD", "VALID UNTIL"),
        [
            (
                role["role"],
                ", ".join(key[:16] for key in role["keys"]),
                str(role["threshold"]),
                _valid_until(role["expires"]),
            )
            for role in roles
        ],
        empty="No roles.",
    )


def _roles(folder: KeyFolder) -> Iterator[dict[str, Any]]:
    root = parse(Root, folder.read_newest(Root.type), Root.type).signed
    targets = parse(Targets, folder.read_newest(Targets.type), Targets.type).signed
    delegated = (targets.delegations.roles if targets.delegations else None) or {}
    expires = {Root.type: root.expires, Targets.type: targets.expires}
    for name in delegated:
        expires[name] = parse(Targets, folder.read_newest(name), name).signed.expires
    for name, role in [*root.roles.items(), *delegated.items()]:
        yield {
            "role": name,
            "keys": role.keyids,
            "threshold": role.threshold,
            "expires": expires[name].isoformat() if name in expires else None,
        }


def _valid_until(expires: str | None) -> str:
    if expires is None:
        return "kept by the server"
    left = days_left(datetime.fromisoformat(expires), datetime.now(UTC))
    if left > EXPIRY_WARNING.days:
        return expires
    state = f"in {left} days" if left >= 0 else "expired"
    return f"{expires} ({state}: run `flotilla keys renew`)"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
