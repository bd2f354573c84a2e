"""`flotilla release diff`: the bytes that a device fetches for a change of release."""

import time

import click
from flotilla.v1 import model_pb2, model_pb2_grpc

from artifact.sizes import in_bytes
from controlplane.cli.app import GlobalOptions, pass_settings
from controlplane.cli.client import TIMEOUT_SECONDS, connect
from controlplane.cli.output import message_to_json, note, print_json, print_table
from controlplane.cli.parameters import DURATION

ASK_EVERY_SECONDS = 1.0


@click.command()
@click.argument("held", metavar="HELD")
@click.argument("wanted", metavar="WANTED")
@click.option("--variant", default="", metavar="NAME", help="Only this variant of each slot.")
@click.option(
    "--wait",
    type=DURATION,
    default="10m",
    show_default=True,
    metavar="TIME",
    help="How long to wait for deltas that are being made.",
)
@pass_settings
def diff(settings: GlobalOptions, held: str, wanted: str, *, variant: str, wait: float) -> None:
    """Show how many bytes a device holding the release HELD fetches for the release WANTED.

    Both are PUBLISHER/NAME@VERSION. BY DELTA is measured: the server makes the deltas, and devices
    will use them.
    """
    answer = _compare(settings, held, wanted, variant, wait)
    if settings.json:
        print_json(message_to_json(answer))
        return
    print_table(
        ("SLOT", "VARIANT", "SIZE", "BY CHUNKS", "BY DELTA"),
        [
            (
                one.slot,
                one.variant,
                in_bytes(one.size_bytes),
                _share(one.chunk_bytes, one),
                "being made" if one.being_made else _share(one.delta_bytes, one),
            )
            for one in answer.variants
        ],
        empty="No variants.",
    )


def _compare(
    settings: GlobalOptions, held: str, wanted: str, variant: str, wait: float
) -> model_pb2.CompareReleasesResponse:
    request = model_pb2.CompareReleasesRequest(held=held, wanted=wanted, variant=variant)
    deadline = time.monotonic() + wait
    told = False
    with connect(settings) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        while True:
            answer = stub.CompareReleases(request, timeout=TIMEOUT_SECONDS)
            if not answer.being_made or time.monotonic() >= deadline:
                return answer
            if not told:
                note("the server is making deltas")
                told = True
            time.sleep(ASK_EVERY_SECONDS)


def _share(count: int, one: model_pb2.VariantDifference) -> str:
    if not count or not one.size_bytes:
        return "nothing"
    return f"{in_bytes(count)} ({100 * count / one.size_bytes:.1f} %)"
