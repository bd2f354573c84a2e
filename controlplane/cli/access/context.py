"""`flotilla context`: the file with the server's address, the token and the trusted CA."""

import os
import secrets
from pathlib import Path

import click
import msgspec
from flotilla.v1 import server_keys_pb2, server_keys_pb2_grpc

from artifact.trust.authority import follow
from artifact.trust.statements import Authorities
from controlplane.cli.app import GlobalOptions, RefusedError, pass_settings
from controlplane.cli.client import TIMEOUT_SECONDS, connect, load_context
from controlplane.cli.output import print_json


@click.group()
def context() -> None:
    """The context file: server, token, and the CA to trust."""


@context.command()
@pass_settings
def refresh(settings: GlobalOptions) -> None:
    """Follow a change of the server's CA: trust the new one beside the old one, or alone.

    Do it in every context file between `flotilla ca rotate` and `flotilla ca retire`. The new CA is
    believed because the one in the file endorses it. For a file that missed that, take `ca_pem`
    from one that did not.
    """
    with connect(settings) as channel:
        stub = server_keys_pb2_grpc.ServerKeyServiceStub(channel)
        request = server_keys_pb2.GetAuthoritiesRequest()
        answer = stub.GetAuthorities(request, timeout=TIMEOUT_SECONDS)
    changed = trust(settings.context_path, answer.change.authorities)
    if settings.json:
        print_json({"context": str(settings.context_path), "changed": changed})
    else:
        said = "trusts the server's CA of now." if changed else "was up to date already."
        click.echo(f"{settings.context_path} {said}")


def trust(path: Path, offered: server_keys_pb2.Authorities) -> bool:
    """Write the CAs into a context file if its present CAs endorse them; return True if changed.

    Raises UntrustedError if they do not.
    """
    held = load_context(path)
    ca_pem = follow(
        held.ca_pem.encode(),
        Authorities(
            current=offered.current_pem,
            previous=offered.previous_pem,
            new_with_old=offered.new_with_old_pem,
            old_with_new=offered.old_with_new_pem,
        ),
    ).decode()
    if ca_pem == held.ca_pem:
        return False
    _replace(path, msgspec.json.encode(msgspec.structs.replace(held, ca_pem=ca_pem)))
    return True


def _replace(path: Path, data: bytes) -> None:
    """Replace the file atomically, readable by its owner only."""
    incoming = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(incoming, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        incoming.replace(path)
    except OSError as error:
        incoming.unlink(missing_ok=True)
        raise RefusedError(
            f"cannot write {path}: {error.strerror}",
            advice="Make it writable for you, and run `flotilla context refresh`.",
        ) from error
