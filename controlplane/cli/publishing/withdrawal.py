"""`flotilla release delist` and `floor`: withdraw releases from installation.

What runs keeps running; move devices off it with a rollout.
"""

from pathlib import Path

import click

from artifact.manifest import split_reference, target_path
from artifact.trust.ceremony import delist as delisting
from artifact.trust.ceremony import raise_floor
from artifact.trust.update import Update
from controlplane.cli.app import GlobalOptions, pass_settings
from controlplane.cli.keys.ceremony import key_work
from controlplane.cli.keys.folder import folder_option, passphrase_option


@click.command()
@click.argument("references", nargs=-1, required=True, metavar="PUBLISHER/NAME@VERSION...")
@folder_option
@passphrase_option
@pass_settings
def delist(
    settings: GlobalOptions,
    *,
    references: tuple[str, ...],
    folder: Path,
    passphrase_file: Path | None,
) -> None:
    """Withdraw releases: no device may install them again. Needs the publisher's key."""
    publisher = _publisher(references[0])
    if {_publisher(reference) for reference in references} != {publisher}:
        raise click.UsageError("these releases are not all of one publisher")
    paths = [target_path(reference) for reference in references]
    with key_work(settings, folder, passphrase_file) as work:
        signer = work.signer(work.folder.publisher_key(publisher))
        listing = work.next_listing(publisher, signer, delisting(publisher, paths))
        work.finish(Update(delegated={publisher: listing}), f"Delisted {', '.join(references)}.")


@click.command()
@click.argument("reference", metavar="PUBLISHER/NAME@VERSION")
@folder_option
@passphrase_option
@pass_settings
def floor(
    settings: GlobalOptions, *, reference: str, folder: Path, passphrase_file: Path | None
) -> None:
    """Let no device go below this release: earlier ones of its name are withdrawn for good.

    It can be raised again, but never lowered. Needs the publisher's key.
    """
    publisher = _publisher(reference)
    edit = raise_floor(publisher, target_path(reference))
    with key_work(settings, folder, passphrase_file) as work:
        signer = work.signer(work.folder.publisher_key(publisher))
        listing = work.next_listing(publisher, signer, edit)
        done = f"{reference} is the lowest release that devices accept."
        work.finish(Update(delegated={publisher: listing}), done)


def _publisher(reference: str) -> str:
    return split_reference(reference)[0].partition("/")[0]
