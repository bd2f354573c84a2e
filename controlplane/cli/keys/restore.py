"""`flotilla keys restore`: return to a restored server the metadata that this folder has seen."""

from pathlib import Path

import click
from flotilla.v1 import model_pb2, model_pb2_grpc
from tuf.api.metadata import TOP_LEVEL_ROLE_NAMES, Root, Targets

from artifact.trust.metadata import parse
from controlplane.cli.app import GlobalOptions, pass_settings
from controlplane.cli.client import TIMEOUT_SECONDS, connect, request_id
from controlplane.cli.keys.folder import KeyFolder, folder_option
from controlplane.cli.output import print_json


@click.command()
@folder_option
@pass_settings
def restore(settings: GlobalOptions, *, folder: Path) -> None:
    """Send a server that was restored from a backup the metadata that it lost.

    Devices refuse metadata older than what they have seen. This command needs no passphrase and
    changes nothing that the server still has; run it with every key folder.
    """
    key_folder = KeyFolder(folder.expanduser())
    key_folder.read_first(Root.type)
    request = model_pb2.RestoreTrustRequest(
        request_id=request_id(),
        roots=[path.read_bytes() for path in key_folder.roots()],
        targets=_newest(key_folder, Targets.type),
        delegated={name: _newest(key_folder, name) for name in _publishers(key_folder)},
    )
    with connect(settings) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        answer = stub.RestoreTrust(request, timeout=TIMEOUT_SECONDS)
    if settings.json:
        print_json(
            {
                "roles": list(answer.roles),
                "releases": list(answer.releases),
                "incomplete": list(answer.incomplete),
            }
        )
        return
    if not (answer.roles or answer.releases or answer.incomplete):
        click.echo("The server has everything that this folder has.")
    if answer.roles:
        click.echo(f"Restored the metadata of {', '.join(answer.roles)}.")
    for reference in answer.releases:
        click.echo(f"Restored {reference}: its files were still there.")
    for reference in answer.incomplete:
        click.echo(f"{reference} lacks files: run `flotilla publish` with its release file again.")


def _publishers(folder: KeyFolder) -> list[str]:
    names = {path.name.removesuffix(".json") for path in folder.metadata_files()}
    return sorted(names - TOP_LEVEL_ROLE_NAMES)


def _newest(folder: KeyFolder, role: str) -> bytes:
    """Return the newest metadata of a role that was signed or verified here; empty if none."""
    found = [path.read_bytes() for path in folder.metadata_files() if path.name == f"{role}.json"]
    return max(found, key=lambda data: parse(Targets, data, role).signed.version, default=b"")
