"""Common steps of changes by offline keys: verify metadata, unlock keys, sign, send or store.

The server's metadata is verified against the root in the key folder and against the versions
verified before, and only then signed on top of. Expired metadata is accepted, since these commands
renew it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import click
import grpc
import msgspec
from flotilla.v1 import model_pb2, model_pb2_grpc
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root, Snapshot, Targets

from artifact.trust.ceremony import add_signature, may_sign, next_version, signatures_missing
from artifact.trust.client import FetchMetadata
from artifact.trust.keys import load_key
from artifact.trust.metadata import MAX_METADATA_BYTES, parse
from artifact.trust.update import Update
from artifact.trust.verify import ImageVerifier
from controlplane.cli.app import GlobalOptions, RefusedError
from controlplane.cli.client import TIMEOUT_SECONDS, connect, request_id
from controlplane.cli.keys.folder import KeyFolder, read_passphrase
from controlplane.cli.output import print_json

MAX_PENDING_BYTES = 64 << 20
# The time to verify at: before any expiry, since these commands renew expired metadata.
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)

Signed = Annotated[bytes, msgspec.Meta(max_length=MAX_METADATA_BYTES)]


class Pending(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A change that is carried from holder to holder; bytes in base64."""

    previous_root: Signed
    root: Signed
    targets: Signed | None = None
    delegated: dict[str, Signed] = {}

    @property
    def missing(self) -> int:
        return signatures_missing(self.previous_root, self.root)


@dataclass
class KeyWork:
    """The keys and the verified metadata of one command."""

    settings: GlobalOptions
    folder: KeyFolder
    passphrase_file: Path | None
    stub: model_pb2_grpc.ModelServiceStub
    roles: dict[str, bytes]
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    _passphrase: str | None = None

    @property
    def root(self) -> Root:
        return parse(Root, self.roles["root"], "root").signed

    @property
    def targets(self) -> Targets:
        return parse(Targets, self.roles["targets"], "targets").signed

    @property
    def publishers(self) -> dict[str, str]:
        """Key id of each publisher."""
        delegations = self.targets.delegations
        roles = delegations.roles if delegations else None
        return {name: role.keyids[0] for name, role in (roles or {}).items()}

    def last_version(self, publisher: str) -> int:
        """Return the version of its metadata, also if it was removed; 0 if it never existed."""
        snapshot = parse(Snapshot, self.roles["snapshot"], "snapshot").signed
        listed = snapshot.meta.get(f"{publisher}.json")
        return listed.version if listed else 0

    @property
    def passphrase(self) -> str:
        """The passphrase, requested on first use."""
        if self._passphrase is None:
            self._passphrase = read_passphrase(self.passphrase_file)
        return self._passphrase

    def signer(self, path: Path) -> CryptoSigner:
        return load_key(path, self.passphrase)

    def successor(self, path: Path) -> CryptoSigner:
        """Return the key that will replace the one in ``path``; the same one on a repeated run."""
        return self.folder.load_or_make(self.folder.next_key(path), self.passphrase)

    def targets_signer(self) -> CryptoSigner:
        return self.signer(self.folder.targets_key)

    def next_root(self, edit: Callable[[Root], None] = lambda _: None) -> bytes:
        """Return the next root, signed by every available key that counts."""
        root = next_version(Root, self.roles["root"], "root", [], now=self.now, edit=edit)
        return sign_with_folder(self.folder, self.passphrase, self.roles["root"], root)

    def next_targets(self, edit: Callable[[Targets], None], signer: CryptoSigner) -> bytes:
        return next_version(
            Targets, self.roles["targets"], "targets", [signer], now=self.now, edit=edit
        )

    def next_listing(
        self, publisher: str, signer: CryptoSigner, edit: Callable[[Targets], None] = lambda _: None
    ) -> bytes:
        """Return the publisher's next metadata; raise RefusedError if the publisher is unknown."""
        if publisher not in self.publishers:
            raise RefusedError(
                f"this server knows no publisher {publisher!r}",
                advice=f"It knows {', '.join(self.publishers)}.",
            )
        return next_version(
            Targets, self.roles[publisher], publisher, [signer], now=self.now, edit=edit
        )

    def finish(self, update: Update, done: str, *keys: Path) -> None:
        """Send the change, or store it until other holders have signed; report which.

        ``keys`` are replaced by their successors once the server has accepted the change.
        """
        pending = None
        if update.root is not None:
            pending = Pending(
                previous_root=self.roles["root"],
                root=update.root,
                targets=update.targets,
                delegated=dict(update.delegated),
            )
        if pending is not None and pending.missing:
            self.folder.pending.write_bytes(msgspec.json.encode(pending))
            report_pending(self.settings, self.folder.pending, pending.missing)
            return
        version = send_update(self.stub, update)
        self.folder.remember_sent(update)
        for path in keys:
            self.folder.take_over(path)
        if self.settings.json:
            print_json({"sent": True, "root_version": version, "changed": changed(update)})
        else:
            click.echo(f"{done} Devices learn of it with their next assignment.")


@contextmanager
def key_work(
    settings: GlobalOptions, folder: Path, passphrase_file: Path | None
) -> Iterator[KeyWork]:
    """Connect, verify the server's metadata, and complete an interrupted earlier command."""
    key_folder = KeyFolder(folder.expanduser())
    root = key_folder.read_first(Root.type)
    with connect(settings) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        verifier = ImageVerifier(
            key_folder.verified, root, metadata_fetcher(stub), clock=lambda: _LONG_AGO
        )
        work = KeyWork(settings, key_folder, passphrase_file, stub, verifier.roles())
        _take_over_accepted(work)
        yield work


def _take_over_accepted(work: KeyWork) -> None:
    """Promote successors that the server names already, after a lost reply for instance."""
    waiting = sorted(work.folder.path.glob("*-next.pem"))
    if not waiting:
        return
    named = {keyid for role in work.root.roles.values() for keyid in role.keyids}
    named |= set(work.publishers.values())
    for successor in waiting:
        if work.signer(successor).public_key.keyid in named:
            work.folder.take_over(successor.with_name(successor.name.replace("-next.pem", ".pem")))


def sign_with_folder(folder: KeyFolder, passphrase: str, previous: bytes, root: bytes) -> bytes:
    """Return the root with the signatures of all root keys in a folder that count."""
    wanted = may_sign(previous, root)
    for path in sorted(folder.path.glob("root-*.pem")):
        signer = load_key(path, passphrase)
        if signer.public_key.keyid in wanted:
            root = add_signature(root, signer)
    return root


def send_update(stub: model_pb2_grpc.ModelServiceStub, update: Update) -> int:
    """Send the update; return the root's version after it."""
    answer = stub.UpdateTrust(
        model_pb2.UpdateTrustRequest(
            request_id=request_id(),
            root=update.root or b"",
            targets=update.targets or b"",
            delegated=dict(update.delegated),
        ),
        timeout=TIMEOUT_SECONDS,
    )
    return int(answer.root_version)


def changed(update: Update) -> list[str]:
    """Return the roles of which an update has a new version."""
    top = [name for name in ("root", "targets") if getattr(update, name) is not None]
    return [*top, *sorted(update.delegated)]


def report_pending(settings: GlobalOptions, path: Path, missing: int) -> None:
    if settings.json:
        report: dict[str, Any] = {"sent": False, "pending": str(path), "missing": missing}
        print_json(report)
        return
    click.echo(
        f"Not sent: root still needs {missing} signature(s). Carry {path} to another holder, who "
        "runs `flotilla keys sign FILE`; then `flotilla keys send FILE`."
    )


def metadata_fetcher(stub: model_pb2_grpc.ModelServiceStub) -> FetchMetadata:
    """Return a function that fetches the image repository's files from the server."""

    def fetch(name: str) -> bytes | None:
        request = model_pb2.GetMetadataRequest(name=name)
        try:
            return bytes(stub.GetMetadata(request, timeout=TIMEOUT_SECONDS).data)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise

    return fetch
