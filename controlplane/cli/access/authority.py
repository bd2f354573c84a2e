"""`flotilla ca`: the certificate authority of server and devices, and its replacement."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import click
from flotilla.v1 import server_keys_pb2, server_keys_pb2_grpc

from controlplane.cli.access.context import trust
from controlplane.cli.app import GlobalOptions, pass_settings
from controlplane.cli.client import TIMEOUT_SECONDS, connect, request_id
from controlplane.cli.output import (
    ago,
    message_to_json,
    note,
    print_fields,
    print_json,
    print_table,
)
from controlplane.cli.parameters import DURATION

MAX_SHOWN = 10


@click.group()
def ca() -> None:
    """The certificate authority of the server and its devices.

    \b
    It is replaced without losing a box:
      flotilla ca rotate     makes another beside it; devices follow by themselves
      flotilla ca show       says which have not yet
      flotilla ca retire     ends the old one
    """


@contextmanager
def _service(settings: GlobalOptions) -> Iterator[server_keys_pb2_grpc.ServerKeyServiceStub]:
    with connect(settings) as channel:
        yield server_keys_pb2_grpc.ServerKeyServiceStub(channel)


@ca.command()
@pass_settings
def show(settings: GlobalOptions) -> None:
    """Show which CA signs, and which devices do not have its certificate yet."""
    with _service(settings) as stub:
        request = server_keys_pb2.GetAuthoritiesRequest()
        change = stub.GetAuthorities(request, timeout=TIMEOUT_SECONDS).change
    _print(settings, change)


@ca.command()
@pass_settings
def rotate(settings: GlobalOptions) -> None:
    """Create a new CA beside the old one. Safe to run again.

    Certificates and join tokens are of the new one from now on. Devices learn of it when they are
    connected, believe in it because the old one endorses it, and renew within minutes. The server
    keeps showing a certificate of the old one until `flotilla ca retire`. Your context file follows
    now; for others there is `flotilla context refresh`.
    """
    with _service(settings) as stub:
        request = server_keys_pb2.RotateAuthorityRequest(request_id=request_id())
        change = stub.RotateAuthority(request, timeout=TIMEOUT_SECONDS).change
    trust(settings.context_path, change.authorities)
    _print(settings, change)
    note("Run `flotilla context refresh` for every other context file, then `flotilla ca retire`.")


@ca.command()
@click.option(
    "--leave-silent",
    "silent",
    type=DURATION,
    metavar="DURATION",
    help="Leave devices behind that were last seen longer ago than this, for instance 30d. "
    "`flotilla-agent enroll --recover` with a new token brings them back.",
)
@pass_settings
def retire(settings: GlobalOptions, silent: float | None) -> None:
    """End the old CA: the server shows a certificate of the new one, the old one's are refused.

    Refused while active devices would be left behind. Its key is deleted. Safe to run again.
    """
    with _service(settings) as stub:
        # An operator with an old context file would be locked out by this command.
        request = server_keys_pb2.GetAuthoritiesRequest()
        before = stub.GetAuthorities(request, timeout=TIMEOUT_SECONDS).change
        trust(settings.context_path, before.authorities)
        change = stub.RetireAuthority(
            server_keys_pb2.RetireAuthorityRequest(
                request_id=request_id(), leave_silent_seconds=silent or 0
            ),
            timeout=TIMEOUT_SECONDS,
        ).change
    trust(settings.context_path, change.authorities)
    _print(settings, change)


def _print(settings: GlobalOptions, change: server_keys_pb2.AuthorityChange) -> None:
    if settings.json:
        pems = {field.name: pem.decode() for field, pem in change.authorities.ListFields()}
        print_json({**message_to_json(change), "authorities": pems})
        return
    now = datetime.now(UTC)
    under_way = bool(change.previous_sha256)
    print_fields(
        {
            "authority": f"sha256 {change.current_sha256}",
            "made": ago(change.current_made_at, now),
            "expires": ago(change.current_expires_at, now),
            "replaces": f"sha256 {change.previous_sha256}" if under_way else "",
            "devices": f"{change.moved} of {change.moved + change.waiting} active have its "
            "certificate",
        }
    )
    if change.waiting:
        print_table(
            ("WAITING", "LAST SEEN"),
            [
                (one.name, "connected" if one.connected else ago(one.last_seen_at, now))
                for one in change.waiting_devices[:MAX_SHOWN]
            ],
            empty="",
        )
