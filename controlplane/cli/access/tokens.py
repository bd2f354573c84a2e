"""`flotilla access`: API tokens of operators and systems."""

from datetime import UTC, datetime

import click
from flotilla.v1 import access_pb2, access_pb2_grpc

from controlplane.cli.app import GlobalOptions, pass_settings
from controlplane.cli.client import (
    MAX_LISTED,
    TIMEOUT_SECONDS,
    connect,
    every_page,
    request_id,
)
from controlplane.cli.confirmation import confirm, confirmed
from controlplane.cli.output import ago, message_to_json, note, print_json, print_table
from controlplane.cli.parameters import DURATION


@click.group()
def access() -> None:
    """API tokens of operators and systems."""


@access.group()
def token() -> None:
    """Create, list and revoke API tokens."""


@token.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["viewer", "operator", "publisher", "admin"]),
    default="viewer",
    show_default=True,
    help=(
        "viewer reads; operator also steers devices and rollouts; publisher also publishes, "
        "but does not operate; admin may do everything."
    ),
)
@click.option(
    "--expires",
    "lifetime",
    type=DURATION,
    metavar="DURATION",
    help="Lifetime: 8h, 90d. Without it, until it is revoked.",
)
@pass_settings
def create(settings: GlobalOptions, name: str, *, role: str, lifetime: float | None) -> None:
    """Create an API token called NAME and print it; the server keeps only its hash.

    \b
    Example:
      flotilla access token create ci --role publisher --expires 90d
    """
    with connect(settings) as channel:
        made = access_pb2_grpc.AccessServiceStub(channel).CreateApiToken(
            access_pb2.CreateApiTokenRequest(
                request_id=request_id(), name=name, role=role, lifetime_seconds=lifetime or 0
            ),
            timeout=TIMEOUT_SECONDS,
        )
    if settings.json:
        print_json(message_to_json(made))
        return
    click.echo(made.secret)
    note(f'The {role} token {name!r}, shown this once; put it as "token" into a context file.')


@token.command("list")
@pass_settings
def list_(settings: GlobalOptions) -> None:
    """Show the API tokens, without their secrets."""
    with connect(settings) as channel:
        stub = access_pb2_grpc.AccessServiceStub(channel)
        request = access_pb2.ListApiTokensRequest()
        found = list(every_page(stub.ListApiTokens, request, "tokens", MAX_LISTED))
    if settings.json:
        print_json({"tokens": [message_to_json(one) for one in found]})
        return
    now = datetime.now(UTC)
    print_table(
        ("ID", "NAME", "ROLE", "MADE", "EXPIRES", "STATE"),
        [
            (
                one.id,
                one.name,
                one.role,
                ago(one.created_at, now),
                ago(one.expires_at, now),
                _state(one, now),
            )
            for one in found
        ],
        empty="No API tokens.",
    )


def _state(one: access_pb2.ApiToken, now: datetime) -> str:
    if one.revoked:
        return "revoked"
    ended = one.HasField("expires_at") and one.expires_at.seconds <= now.timestamp()
    return "expired" if ended else "good"


@token.command()
@click.argument("token_id", metavar="ID")
@confirmed
@pass_settings
def revoke(settings: GlobalOptions, token_id: str, *, yes: bool, dry_run: bool) -> None:
    """Revoke an API token at once, for good."""
    with connect(settings) as channel:
        stub = access_pb2_grpc.AccessServiceStub(channel)
        request = access_pb2.ListApiTokensRequest()
        tokens = every_page(stub.ListApiTokens, request, "tokens", MAX_LISTED)
        preview = [
            f"The {one.role} token {one.name!r} (id {one.id}) is refused from now on."
            for one in tokens
            if one.id == token_id
        ]
        # The server names an unknown id better than a preview of nothing.
        if preview and not confirm(settings, preview, yes=yes, dry_run=dry_run):
            return
        revoked = stub.RevokeApiToken(
            access_pb2.RevokeApiTokenRequest(request_id=request_id(), id=token_id),
            timeout=TIMEOUT_SECONDS,
        )
    if settings.json:
        print_json(message_to_json(revoked.token))
        return
    click.echo(f"Revoked the API token {revoked.token.name!r}.")
