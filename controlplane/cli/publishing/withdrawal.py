"""`flotilla release delist` and `floor`: withdraw releases from installation.

What runs keeps running; move devices off it with a rollout. Withdrawing cannot be undone, so both
commands list what they withdraw and which devices run it, and ask.
"""

from pathlib import Path

import click
from tuf.api.metadata import Targets

from artifact.manifest import split_reference, target_path
from artifact.trust.ceremony import delist as delisting
from artifact.trust.ceremony import raise_floor
from artifact.trust.metadata import listed_releases, parse
from artifact.trust.succession import below
from artifact.trust.update import Update
from controlplane.cli.app import GlobalOptions, RefusedError, pass_settings
from controlplane.cli.confirmation import confirmed
from controlplane.cli.keys.ceremony import KeyWork, key_work
from controlplane.cli.keys.folder import folder_option, passphrase_option
from controlplane.cli.keys.preview import confirm_withdrawal, reference_of


@click.command()
@click.argument("references", nargs=-1, required=True, metavar="PUBLISHER/NAME@VERSION...")
@folder_option
@passphrase_option
@confirmed
@pass_settings
def delist(
    settings: GlobalOptions,
    *,
    references: tuple[str, ...],
    folder: Path,
    passphrase_file: Path | None,
    yes: bool,
    dry_run: bool,
) -> None:
    """Withdraw releases: no device may install them again. Needs the publisher's key."""
    publisher = _publisher(references[0])
    if {_publisher(reference) for reference in references} != {publisher}:
        raise click.UsageError("these releases are not all of one publisher")
    paths = [target_path(reference) for reference in references]
    with key_work(settings, folder, passphrase_file) as work:
        listed = listed_releases(_listing(work, publisher))
        for reference, path in zip(references, paths, strict=True):
            if path not in listed:
                raise _unlisted(publisher, reference)
        if not confirm_withdrawal(settings, references, yes=yes, dry_run=dry_run):
            return
        signer = work.signer(work.folder.publisher_key(publisher))
        listing = work.next_listing(publisher, signer, delisting(publisher, paths))
        work.finish(Update(delegated={publisher: listing}), f"Delisted {', '.join(references)}.")


@click.command()
@click.argument("reference", metavar="PUBLISHER/NAME@VERSION")
@folder_option
@passphrase_option
@confirmed
@pass_settings
def floor(
    settings: GlobalOptions,
    *,
    reference: str,
    folder: Path,
    passphrase_file: Path | None,
    yes: bool,
    dry_run: bool,
) -> None:
    """Let no device go below this release: lower versions of its name are withdrawn for good.

    Versions are compared as semantic versions. The floor can be raised again, but never lowered.
    Needs the publisher's key.
    """
    publisher = _publisher(reference)
    path = target_path(reference)
    with key_work(settings, folder, passphrase_file) as work:
        listed = listed_releases(_listing(work, publisher))
        if path not in listed:
            raise _unlisted(publisher, reference)
        withdrawn = [reference_of(release.path) for release in below(listed, path)]
        if not confirm_withdrawal(settings, withdrawn, yes=yes, dry_run=dry_run):
            return
        signer = work.signer(work.folder.publisher_key(publisher))
        listing = work.next_listing(publisher, signer, raise_floor(publisher, path))
        done = f"{reference} is the lowest release that devices accept."
        work.finish(Update(delegated={publisher: listing}), done)


def _listing(work: KeyWork, publisher: str) -> Targets:
    if publisher not in work.publishers:
        raise RefusedError(
            f"this server knows no publisher {publisher!r}",
            advice=f"It knows {', '.join(work.publishers)}.",
        )
    return parse(Targets, work.roles[publisher], publisher).signed


def _unlisted(publisher: str, reference: str) -> RefusedError:
    return RefusedError(
        f"{publisher} does not list {reference}",
        advice="Name a release that `flotilla release list` shows.",
    )


def _publisher(reference: str) -> str:
    return split_reference(reference)[0].partition("/")[0]
