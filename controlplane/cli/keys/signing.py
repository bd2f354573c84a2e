"""`flotilla keys sign` and `send`: a new root that several holders must sign.

`sign` needs no server: the machine that holds a root key may be offline.
"""

from pathlib import Path

import click
import msgspec
from flotilla.v1 import model_pb2_grpc
from tuf.api.metadata import Root

from artifact.trust.metadata import parse
from artifact.trust.update import Update
from controlplane.cli.app import GlobalOptions, RefusedError, pass_settings
from controlplane.cli.client import connect
from controlplane.cli.confirmation import confirm, yes_option
from controlplane.cli.keys.ceremony import (
    MAX_PENDING_BYTES,
    Pending,
    changed,
    report_pending,
    send_update,
    sign_with_folder,
)
from controlplane.cli.keys.folder import (
    KeyFolder,
    folder_option,
    passphrase_option,
    read_passphrase,
)
from controlplane.cli.output import note, print_json

_file = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))


@click.command()
@_file
@folder_option
@passphrase_option
@yes_option
@pass_settings
def sign(
    settings: GlobalOptions, *, file: Path, folder: Path, passphrase_file: Path | None, yes: bool
) -> None:
    """Add the signatures of the root keys in DIR to the change in FILE, after showing it."""
    pending = _read(file)
    _show(pending)
    confirm(settings, ["Your key will sign this change."], yes=yes)
    key_folder = KeyFolder(folder.expanduser())
    before = len(parse(Root, pending.root, Root.type).signatures)
    root = sign_with_folder(
        key_folder, read_passphrase(passphrase_file), pending.previous_root, pending.root
    )
    if len(parse(Root, root, Root.type).signatures) == before:
        raise RefusedError(
            f"no key in {key_folder.path} can add a signature to it",
            advice="Each root key signs once; name the folder of another holder with --dir.",
        )
    pending = msgspec.structs.replace(pending, root=root)
    partial = file.with_suffix(".part")
    partial.write_bytes(msgspec.json.encode(pending))
    partial.replace(file)
    if pending.missing:
        report_pending(settings, file, pending.missing)
    elif settings.json:
        print_json({"sent": False, "pending": str(file), "missing": 0})
    else:
        click.echo("Enough have signed: `flotilla keys send FILE` sends it.")


@click.command()
@_file
@pass_settings
def send(settings: GlobalOptions, *, file: Path) -> None:
    """Send the change in FILE, once enough holders have signed it; then FILE is removed."""
    pending = _read(file)
    if pending.missing:
        raise RefusedError(
            f"root still needs {pending.missing} signature(s)",
            advice="Other holders add theirs with `flotilla keys sign FILE`.",
        )
    update = Update(pending.root, pending.targets, pending.delegated)
    with connect(settings) as channel:
        version = send_update(model_pb2_grpc.ModelServiceStub(channel), update)
    file.unlink()
    if settings.json:
        print_json({"sent": True, "root_version": version, "changed": changed(update)})
    else:
        click.echo(f"Sent: the server trusts root version {version} now.")


def _read(file: Path) -> Pending:
    try:
        with file.open("rb") as source:
            return msgspec.json.decode(source.read(MAX_PENDING_BYTES), type=Pending)
    except OSError as error:
        raise RefusedError(
            f"cannot read {file}: {error.strerror}", advice="Name the file that was carried here."
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RefusedError(
            f"{file} is no pending change: {error}",
            advice="It is the pending.json that `flotilla keys` left in the first holder's folder.",
        ) from error


def _show(pending: Pending) -> None:
    """Print the change, for the holder to compare with the agreement."""
    old = parse(Root, pending.previous_root, Root.type).signed
    new = parse(Root, pending.root, Root.type).signed
    note(f"root version {old.version} -> {new.version}, valid until {new.expires:%Y-%m-%d}")
    for name, role in new.roles.items():
        before = old.roles[name]
        note(f"{name}: {role.threshold} of {len(role.keyids)} keys")
        for keyid in dict.fromkeys([*before.keyids, *role.keyids]):
            kept = keyid in role.keyids
            mark = "    " if kept and keyid in before.keyids else "  + " if kept else "  - "
            note(f"{mark}{keyid}")
    others = changed(Update(None, pending.targets, pending.delegated))
    if others:
        note(f"with new metadata of {', '.join(others)}")
