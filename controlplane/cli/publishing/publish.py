"""`flotilla publish`: from release.yaml to a signed release on the server.

Everything is checked before anything is sent. The publisher's key never leaves this process. The
server's metadata of earlier releases is verified against the root in the key folder before a new
version is signed on top of it.
"""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import click
import grpc
import msgspec
from flotilla.v1 import model_pb2, model_pb2_grpc
from tuf.api.metadata import Root, Targets

from artifact.manifest import Component, Release, encode_release, target_path
from artifact.sizes import in_bytes
from artifact.trust.image import add_release
from artifact.trust.keys import load_key
from artifact.trust.metadata import ListedRelease, listed_releases, parse
from artifact.trust.succession import Listing, floor_counter, next_counter
from artifact.trust.update import Update
from artifact.trust.verify import ImageVerifier
from controlplane.cli.app import GlobalOptions, RefusedError, pass_settings
from controlplane.cli.client import TIMEOUT_SECONDS, connect, request_id
from controlplane.cli.keys.ceremony import metadata_fetcher
from controlplane.cli.keys.folder import (
    DEFAULT_FOLDER,
    KeyFolder,
    passphrase_option,
    read_passphrase,
)
from controlplane.cli.output import note, print_json
from controlplane.cli.publishing.built_model import (
    BuiltFile,
    check_files,
    choose_variants,
    load_adapter,
    load_model,
)
from controlplane.cli.publishing.notices import check_figures
from controlplane.cli.publishing.release_file import ReleaseFile, load_release_file
from controlplane.cli.publishing.upload import UploadReport, upload


@click.command()
@click.argument("release_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--keys",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    default=DEFAULT_FOLDER,
    show_default=True,
    help="Folder that `flotilla keys init` filled.",
)
@passphrase_option
@pass_settings
def publish(
    settings: GlobalOptions, release_file: Path, *, folder: Path, passphrase_file: Path | None
) -> None:
    """Sign the release in RELEASE_FILE and upload the files that the server lacks.

    Publishing the same release again changes nothing.
    """
    source = load_release_file(release_file)
    release, files = _build(source, release_file.parent)
    key_folder = KeyFolder(folder.expanduser())
    root = key_folder.read_first(Root.type)
    with connect(settings) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        verifier = ImageVerifier(
            key_folder.verified, root, metadata_fetcher(stub), clock=lambda: datetime.now(UTC)
        )
        current = verifier.listing(release.publisher)
        listing = listed_releases(parse(Targets, current, release.publisher).signed)
        listed = listing.get(target_path(release.reference))
        counter = listed.counter if listed else next_counter(listing, release.name)
        release = msgspec.structs.replace(release, counter=counter)
        manifest = encode_release(release)
        if listed is not None:
            _refuse_change(release, manifest, listed)
            report = upload(stub, files)
            if not _is_stored(stub, release.reference):
                # A server restored from a backup may have the listing without the release.
                _publish(stub, manifest, current)
        else:
            signer = load_key(
                key_folder.publisher_key(release.publisher), read_passphrase(passphrase_file)
            )
            lowest = _lowest(source, release, listing)
            targets = add_release(
                current,
                manifest,
                signer,
                now=datetime.now(UTC),
                lowest=lowest,
                hardware_classes=source.hardware_classes,
            )
            report = upload(stub, files)
            _publish(stub, manifest, targets)
            key_folder.remember_sent(Update(delegated={release.publisher: targets}))
    _report(settings, release, manifest, report, published=listed is None)


def _publish(stub: model_pb2_grpc.ModelServiceStub, manifest: bytes, targets: bytes) -> None:
    request = model_pb2.PublishReleaseRequest(
        request_id=request_id(), manifest=manifest, targets=targets
    )
    stub.PublishRelease(request, timeout=TIMEOUT_SECONDS)


def _is_stored(stub: model_pb2_grpc.ModelServiceStub, reference: str) -> bool:
    try:
        stub.GetRelease(model_pb2.GetReleaseRequest(reference=reference), timeout=TIMEOUT_SECONDS)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return False
        raise
    return True


def _build(source: ReleaseFile, folder: Path) -> tuple[Release, list[BuiltFile]]:
    """Return the release (its counter is set later) and every file of it, checked."""
    components: list[Component] = []
    files: list[BuiltFile] = []
    for part in source.components:
        directory = folder / part.model
        model = choose_variants(load_model(directory), part.variants)
        note(f"checking {model.reference} in {directory}")
        files += check_files(directory, model)
        built = [load_adapter(folder / adapter) for adapter in part.adapters]
        files += [file for _, file in built]
        components.append(
            Component(
                slot=part.slot,
                model=model,
                adapters=tuple(adapter for adapter, _ in built),
                max_memory_bytes=part.max_memory_bytes,
                max_concurrency=part.max_concurrency,
                idle_unload_seconds=part.idle_unload_seconds,
                share_prefixes=part.share_prefixes,
            )
        )
    release = Release(
        schema=1,
        name=source.name,
        version=source.version,
        counter=1,
        components=tuple(components),
        routes=source.routes,
        probation=source.probation,
        selection=source.selection,
        description=source.description,
    )
    encode_release(release)
    for warning in check_figures(release):
        note(f"warning: {warning}")
    return release, files


def _refuse_change(release: Release, manifest: bytes, listed: ListedRelease) -> None:
    digest = hashlib.sha256(manifest).hexdigest()
    if listed.sha256 != digest:
        raise RefusedError(
            f"{release.reference} is published already, with other content (manifest "
            f"{listed.sha256[:12]}, here {digest[:12]})",
            advice="A release never changes: give this one a new version.",
        )


def _lowest(source: ReleaseFile, release: Release, listing: Listing) -> int | None:
    """Return the lowest counter of the version that min_release names and of higher versions."""
    if source.min_release is None:
        return None
    if source.min_release == release.version:
        return release.counter
    path = target_path(f"{release.name}@{source.min_release}")
    if path not in listing:
        raise RefusedError(
            f"min_release names {release.name}@{source.min_release}, which is not listed",
            advice="Name a version that `flotilla release list` shows, or this one.",
        )
    return floor_counter(listing, path)


def _report(
    settings: GlobalOptions,
    release: Release,
    manifest: bytes,
    report: UploadReport,
    *,
    published: bool,
) -> None:
    """Print the result; ``published`` is false if the release existed already."""
    if settings.json:
        print_json(
            {
                "reference": release.reference,
                "counter": release.counter,
                "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
                "published": published,
                "upload": msgspec.to_builtins(report),
            }
        )
        return
    if not published and not report.chunks_sent:
        click.echo(f"{release.reference} is published already; nothing to do.")
        return
    if not published:
        click.echo(
            f"{release.reference} is published already; sent {report.chunks_sent} chunks again "
            "that the server had lost or that its disk had altered."
        )
        return
    sent = f"{report.chunks_sent} of {report.chunks_total} chunks"
    click.echo(
        f"Published {release.reference} (counter {release.counter}): sent {sent}, "
        f"{in_bytes(report.bytes_sent)} of {in_bytes(report.bytes_total)} "
        f"in {report.seconds:.1f} s."
    )
