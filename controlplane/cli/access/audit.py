"""`flotilla audit`: who changed what, and when."""

import click
from flotilla.v1 import access_pb2, access_pb2_grpc

from controlplane.cli.app import GlobalOptions, pass_settings
from controlplane.cli.client import connect, every_page
from controlplane.cli.output import message_to_json, moment, print_json, print_table
from controlplane.cli.parameters import limit_option


@click.group()
def audit() -> None:
    """Who changed what, and when."""


@audit.command("list")
@limit_option
@pass_settings
def list_(settings: GlobalOptions, *, limit: int) -> None:
    """Show the audit log. Each event's digest covers the one before, so deletions show."""
    with connect(settings) as channel:
        stub = access_pb2_grpc.AccessServiceStub(channel)
        request = access_pb2.ListAuditEventsRequest()
        found = list(every_page(stub.ListAuditEvents, request, "events", limit))
    if settings.json:
        print_json({"events": [message_to_json(one) for one in found]})
        return
    print_table(
        ("#", "WHEN", "WHO", "WHAT", "SUBJECT", "DETAIL"),
        [
            (
                str(one.sequence),
                f"{moment(one.at):%Y-%m-%d %H:%M:%S}",
                one.actor,
                one.action,
                one.subject,
                one.detail,
            )
            for one in found
        ],
        empty="Nothing was changed yet.",
    )
