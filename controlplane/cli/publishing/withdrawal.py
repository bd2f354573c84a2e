"""`flotilla release delist` and `floor`: withdraw releases from installation.

What runs keeps running; move devices off it with a rollout. Withdrawing cannot be undone, so both
commands list what they withdraw and which devices run it, and ask.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from flotilla.v1 import fleet_pb2, fleet_pb2_grpc
from tuf.api.metadata import Targets

from artifact.manifest import split_reference, target_path
from artifact.trust.ceremony import delist as delisting
from artifact.trust.ceremony import raise_floor
from artifact.trust.metadata import listed_releases, parse
from artifact.trust.succession import below
from artifact.trust.update import Update
from controlplane.cli.app import GlobalOptions, RefusedError, pass_settings
from controlplane.cli.client import MAX_LISTED, connect, every_page
from controlplane.cli.keys.ceremony import KeyWork, key_work
from controlplane.cli.keys.folder import folder_option, passphrase_option
from controlplane.cli.output import note, print_json

NAMED_DEVICES = 5

_yes = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
_dry_run = click.option("--dry-run", is_flag=True, help="Only show what would be withdrawn.")


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A release that would be withdrawn, and the devices that run it now."""

    release: str
    devices: tuple[str, ...]


@click.command()
@click.argument("references", nargs=-1, required=True, metavar="PUBLISHER/NAME@VERSION...")
@folder_option
@passphrase_option
@_yes
@_dry_run
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
        if not _confirmed(settings, references, yes=yes, dry_run=dry_run):
            return
        signer = work.signer(work.folder.publisher_key(publisher))
        listing = work.next_listing(publisher, signer, delisting(publisher, paths))
        work.finish(Update(delegated={publisher: listing}), f"Delisted {', '.join(references)}.")


@click.command()
@click.argument("reference", metavar="PUBLISHER/NAME@VERSION")
@folder_option
@passphrase_option
@_yes
@_dry_run
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
        withdrawn = [_reference(release.path) for release in below(listed, path)]
        if not _confirmed(settings, withdrawn, yes=yes, dry_run=dry_run):
            return
        signer = work.signer(work.folder.publisher_key(publisher))
        listing = work.next_listing(publisher, signer, raise_floor(publisher, path))
        done = f"{reference} is the lowest release that devices accept."
        work.finish(Update(delegated={publisher: listing}), done)


def _confirmed(
    settings: GlobalOptions, references: Collection[str], *, yes: bool, dry_run: bool
) -> bool:
    """Show what is withdrawn and return whether to do it; False after ``--dry-run``."""
    plan = _running(settings, references)
    if dry_run and settings.json:
        print_json({"withdraws": [asdict(one) for one in plan]})
        return False
    for one in plan:
        names = ", ".join(one.devices[:NAMED_DEVICES])
        more = f" and {len(one.devices) - NAMED_DEVICES} more" * (len(one.devices) > NAMED_DEVICES)
        note(
            f"withdraws {one.release}: "
            + (f"run by {names}{more}" if names else "run by no device")
        )
    if not plan:
        note("withdraws no release")
    return not dry_run and (yes or click.confirm("This cannot be undone. Continue?", err=True))


def _running(settings: GlobalOptions, references: Collection[str]) -> list[Withdrawn]:
    running: dict[str, list[str]] = {reference: [] for reference in references}
    with connect(settings) as channel:
        stub = fleet_pb2_grpc.FleetServiceStub(channel)
        devices = every_page(
            stub.ListDevices, fleet_pb2.ListDevicesRequest(), "devices", MAX_LISTED
        )
        for device in devices:
            if device.current_release in running:
                running[device.current_release].append(device.name)
    return [Withdrawn(release, tuple(names)) for release, names in running.items()]


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


def _reference(path: str) -> str:
    name, _, file = path.rpartition("/")
    return f"{name}@{file.removesuffix('.json')}"


def _publisher(reference: str) -> str:
    return split_reference(reference)[0].partition("/")[0]
