"""`flotilla telemetry`: speed, latency, memory and energy, as devices measured them."""

from datetime import UTC, datetime, timedelta

import click
from flotilla.v1 import telemetry_pb2, telemetry_pb2_grpc

from artifact.sizes import in_bytes
from controlplane.cli.app import GlobalOptions, pass_settings
from controlplane.cli.client import TIMEOUT_SECONDS, connect
from controlplane.cli.output import duration, message_to_json, print_json, print_table
from controlplane.cli.parameters import DURATION, REFERENCE

GROUPINGS = {
    "device": telemetry_pb2.TELEMETRY_GROUPING_DEVICE,
    "variant": telemetry_pb2.TELEMETRY_GROUPING_VARIANT,
    "hardware-class": telemetry_pb2.TELEMETRY_GROUPING_HARDWARE_CLASS,
    "route": telemetry_pb2.TELEMETRY_GROUPING_ROUTE,
}


@click.group()
def telemetry() -> None:
    """Speed, latency, memory and energy."""


@telemetry.command()
@click.option(
    "--by",
    "grouping",
    type=click.Choice(list(GROUPINGS)),
    default="variant",
    show_default=True,
    help="What a row is about.",
)
@click.option(
    "--to",
    "--selector",
    "selector",
    default="",
    metavar="SELECTOR",
    help="Only devices whose labels match, such as 'site=lab'.",
)
@click.option(
    "--release",
    type=REFERENCE,
    default="",
    metavar="PUBLISHER/NAME@VERSION",
    help="Only this release.",
)
@click.option(
    "--since",
    type=DURATION,
    default="1h",
    show_default=True,
    metavar="DURATION",
    help="Only the last 30m, 1h, 7d.",
)
@pass_settings
def summary(
    settings: GlobalOptions, *, grouping: str, selector: str, release: str, since: float
) -> None:
    """Summarise measurements of devices while they served.

    Percentiles are merged over all requests, never averaged. Tokens per joule is tokens/s per
    watt; without a meter energy is "unmeasured", and figures of different meters are not added.
    By route it shows what each target of a split, cascade or pipeline did for it: which share of
    its requests a cascade passed on, and how long the engine worked for each.

    \b
    Example:
      flotilla telemetry summary --by hardware-class --to site=lab --since 24h
    """
    request = telemetry_pb2.SummarizeTelemetryRequest(
        selector=selector, release=release, grouping=GROUPINGS[grouping]
    )
    request.since.FromDatetime(datetime.now(UTC) - timedelta(seconds=since))
    with connect(settings) as channel:
        found = telemetry_pb2_grpc.TelemetryServiceStub(channel).SummarizeTelemetry(
            request, timeout=TIMEOUT_SECONDS
        )
    if settings.json:
        print_json(message_to_json(found))
        return
    # By variant, the group would repeat the variant.
    about = [] if grouping == "variant" else [grouping.upper()]
    print_table(
        (
            *(*about, "RELEASE", "SLOT", "VARIANT", "DEVICES", "REQUESTS", "ERRORS"),
            *("TOKENS/S", "TTFT P50/P95", "LATENCY P50/P95", "PEAK MEMORY", "TOKENS/J", "METER"),
            *(("PASSED ON", "BUSY/REQUEST") if grouping == "route" else ()),
        ),
        [
            (
                *([row.group] if about else []),
                *_row(row),
                *(_composed(row) if grouping == "route" else ()),
            )
            for row in found.rows
        ],
        empty=_empty(selector, release, since),
    )


def _empty(selector: str, release: str, since: float) -> str:
    """Describe the filters that no telemetry passed."""
    filters = [f"the last {duration(since)}"]
    filters += [f"release {release}"] if release else []
    filters += [f"devices that match {selector!r}"] if selector else []
    return (
        f"No telemetry of {', '.join(filters)}. Devices report requests that they served; try a "
        "longer --since or fewer filters."
    )


def _row(row: telemetry_pb2.TelemetrySummary) -> tuple[str, ...]:
    return (
        row.release,
        row.slot,
        row.variant,
        str(row.devices),
        str(row.requests),
        str(row.errors),
        f"{row.tokens_per_second:.1f}" if row.HasField("tokens_per_second") else "-",
        _pair(row, "ttft"),
        _pair(row, "latency"),
        in_bytes(row.peak_memory_bytes),
        f"{row.tokens_per_joule:.3g}" if row.HasField("tokens_per_joule") else "unmeasured",
        row.energy_provenance or "none",
    )


def _composed(row: telemetry_pb2.TelemetrySummary) -> tuple[str, str]:
    """Return the share of requests that a cascade escalated, and the engine time per request."""
    if not row.requests:
        return "-", "-"
    share, busy = row.escalations / row.requests, row.busy_seconds / row.requests
    return f"{share:.1%}", f"{busy * 1000:.1f} ms"


def _pair(row: telemetry_pb2.TelemetrySummary, name: str) -> str:
    """Format the median and the 95th percentile in milliseconds."""
    fields = [f"{name}_p50_seconds", f"{name}_p95_seconds"]
    if not all(name in {field.name for field, _ in row.ListFields()} for name in fields):
        return "-"
    return " / ".join(f"{getattr(row, field) * 1000:.1f}" for field in fields) + " ms"
