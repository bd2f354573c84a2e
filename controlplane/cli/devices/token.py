"""`flotilla token`: join tokens that let new devices enrol."""

from datetime import UTC, datetime

import click
from flotilla.v1 import fleet_pb2, fleet_pb2_grpc

from controlplane.cli.app import GlobalOptions, pass_settings
from controlplane.cli.client import (
    MAX_LISTED,
    TIMEOUT_SECONDS,
    connect,
    every_page,
    load_context,
    request_id,
)
from controlplane.cli.confirmation import confirm, confirmed, counted
from controlplane.cli.output import ago, message_to_json, note, print_json, print_table
from controlplane.cli.parameters import DURATION, LABEL


@click.group()
def token() -> None:
    """Join tokens that let new devices enrol."""


@token.command()
@click.option(
    "--uses",
    type=click.IntRange(1, 100_000),
    default=1,
    show_default=True,
    help="Number of devices that may join with it.",
)
@click.option(
    "--expires",
    "lifetime",
    type=DURATION,
    default="1h",
    show_default=True,
    metavar="DURATION",
    help="Lifetime: 90s, 15m, 1h, 7d.",
)
@click.option(
    "--label",
    "labels",
    type=LABEL,
    multiple=True,
    metavar="KEY=VALUE",
    help="Label of every device that joins with it; the device cannot change it. Repeatable.",
)
@pass_settings
def create(
    settings: GlobalOptions, *, uses: int, lifetime: float, labels: tuple[tuple[str, str], ...]
) -> None:
    """Create a join token and print it; the server keeps only its hash.

    \b
    Example, on your machine and then on the box:
      flotilla token create --uses 20 --expires 2h --label site=lab
      flotilla-agent enroll --server HOST:PORT --token TOKEN --name lab-1 --data-dir DIR
    """
    with connect(settings) as channel:
        made = fleet_pb2_grpc.FleetServiceStub(channel).CreateJoinToken(
            fleet_pb2.CreateJoinTokenRequest(
                request_id=request_id(), uses=uses, lifetime_seconds=lifetime, labels=dict(labels)
            ),
            timeout=TIMEOUT_SECONDS,
        )
    if settings.json:
        print_json(message_to_json(made))
        return
    click.echo(made.secret)
    server = load_context(settings.context_path).server
    note(
        f"Good for {uses} box{'es' if uses > 1 else ''}, "
        f"expires {ago(made.token.expires_at, datetime.now(UTC))}; shown this once. On the box:"
    )
    note(f"  flotilla-agent enroll --server {server} --token TOKEN --name NAME --data-dir DIR")


@token.command("list")
@pass_settings
def list_(settings: GlobalOptions) -> None:
    """Show the join tokens, without their secrets."""
    with connect(settings) as channel:
        stub = fleet_pb2_grpc.FleetServiceStub(channel)
        request = fleet_pb2.ListJoinTokensRequest()
        found = list(every_page(stub.ListJoinTokens, request, "tokens", MAX_LISTED))
    if settings.json:
        print_json({"tokens": [message_to_json(one) for one in found]})
        return
    now = datetime.now(UTC)
    print_table(
        ("ID", "USES LEFT", "EXPIRES", "STATE", "LABELS"),
        [
            (
                one.id,
                str(one.uses_left),
                ago(one.expires_at, now),
                _state(one, now),
                ",".join(f"{key}={value}" for key, value in sorted(one.labels.items())),
            )
            for one in found
        ],
        empty="No join tokens; make one with `flotilla token create`.",
    )


def _state(one: fleet_pb2.JoinToken, now: datetime) -> str:
    if one.revoked:
        return "revoked"
    if not one.uses_left:
        return "used up"
    return "expired" if one.expires_at.seconds <= now.timestamp() else "good"


@token.command()
@click.argument("token_id", metavar="ID")
@confirmed
@pass_settings
def revoke(settings: GlobalOptions, token_id: str, *, yes: bool, dry_run: bool) -> None:
    """Revoke a join token; devices that joined with it stay enrolled."""
    with connect(settings) as channel:
        stub = fleet_pb2_grpc.FleetServiceStub(channel)
        request = fleet_pb2.ListJoinTokensRequest()
        tokens = every_page(stub.ListJoinTokens, request, "tokens", MAX_LISTED)
        preview = [
            f"The join token {one.id} ({counted(one.uses_left, 'use')} left) admits no more."
            for one in tokens
            if one.id == token_id
        ]
        # The server names an unknown id better than a preview of nothing.
        if preview and not confirm(settings, preview, yes=yes, dry_run=dry_run):
            return
        revoked = stub.RevokeJoinToken(
            fleet_pb2.RevokeJoinTokenRequest(request_id=request_id(), id=token_id),
            timeout=TIMEOUT_SECONDS,
        )
    if settings.json:
        print_json(message_to_json(revoked.token))
        return
    click.echo(f"Revoked join token {revoked.token.id}.")
