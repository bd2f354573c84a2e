"""`flotilla release`: what is published."""

import json
from datetime import UTC, datetime

import click
from flotilla.v1 import model_pb2, model_pb2_grpc

from artifact.manifest import decode_release
from controlplane.cli.app import GlobalOptions, pass_settings
from controlplane.cli.client import TIMEOUT_SECONDS, connect, every_page
from controlplane.cli.models.variants import lineage_of, print_variants, recipes_of
from controlplane.cli.output import (
    ago,
    message_to_json,
    print_fields,
    print_json,
    print_table,
)
from controlplane.cli.parameters import limit_option
from controlplane.cli.publishing.release_diff import diff
from controlplane.cli.publishing.withdrawal import delist, floor


@click.group()
def release() -> None:
    """Published releases."""


release.add_command(delist)
release.add_command(floor)


@release.command("list")
@limit_option
@pass_settings
def list_(settings: GlobalOptions, *, limit: int) -> None:
    """Show published releases."""
    with connect(settings) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        request = model_pb2.ListReleasesRequest()
        found = list(every_page(stub.ListReleases, request, "releases", limit))
    if settings.json:
        print_json({"releases": [message_to_json(one) for one in found]})
        return
    now = datetime.now(UTC)
    print_table(
        ("RELEASE", "COUNTER", "LISTED", "PUBLISHED", "SLOTS", "DESCRIPTION"),
        [
            (
                one.reference,
                str(one.counter),
                "yes" if one.listed else "withdrawn",
                ago(one.published_at, now),
                ", ".join(f"{part.slot}: {part.model_version}" for part in one.components),
                one.description,
            )
            for one in found
        ],
        empty="Nothing is published yet; `flotilla publish release.yaml` does it.",
    )


@release.command()
@click.argument("reference", metavar="PUBLISHER/NAME@VERSION")
@pass_settings
def show(settings: GlobalOptions, reference: str) -> None:
    """Show one release: its slots, and every variant a device may choose."""
    with connect(settings) as channel:
        found = model_pb2_grpc.ModelServiceStub(channel).GetRelease(
            model_pb2.GetReleaseRequest(reference=reference), timeout=TIMEOUT_SECONDS
        )
    if settings.json:
        manifest = json.loads(found.manifest)
        print_json({**message_to_json(found.release), "manifest": manifest})
        return
    one = found.release
    print_fields(
        {
            "release": one.reference,
            "description": one.description,
            "counter": str(one.counter),
            "listed": "yes" if one.listed else "withdrawn: no device may install it",
            "published": ago(one.published_at, datetime.now(UTC)),
            "manifest": f"sha256 {one.manifest_sha256}",
        }
    )
    for part in decode_release(found.manifest).components:
        click.echo()
        print_fields(
            {
                "slot": part.slot,
                "model": part.model.reference,
                "task": part.model.task,
                "lineage": lineage_of(part.model),
                "made": recipes_of(part.model.variants),
            }
        )
        print_variants(part.model.variants)


release.add_command(diff)
