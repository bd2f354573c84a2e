"""The operator's folder of offline keys: its files, and unlocking them.

    root-1.pem ...          root keys, encrypted
    targets.pem             the key that names publishers, encrypted
    publisher-NAME.pem      one per publisher, encrypted
    1.root.json ...         metadata signed first; root is the anchor of all trust
    verified/               metadata verified last; older versions are refused
    sent/                   metadata signed here and accepted by the server
    ...-next.pem            a new key, which takes the old one's name once the server knows it
    retired/                keys that no longer sign anything
    pending.json            a change that still lacks signatures of other holders

A folder belongs to one server, since its root names that server's online keys.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import TOP_LEVEL_ROLE_NAMES, Root, Targets

from artifact.manifest import QualifiedName
from artifact.trust.keys import generate_key, load_key, write_key
from artifact.trust.metadata import MAX_METADATA_BYTES, parse
from artifact.trust.update import Update
from controlplane.cli.app import RefusedError

DEFAULT_FOLDER = Path("~/.config/flotilla/keys")
PASSPHRASE_VARIABLE = "FLOTILLA_KEY_PASSPHRASE"  # noqa: S105 - a name, not a passphrase

_MAX_PASSPHRASE_BYTES = 1024

# Names that `flotilla keys rotate` uses for the keys of the director repository.
DIRECTOR = "director"
DIRECTOR_ROOT = "director-root"


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """Paths in a key folder, which may not exist yet."""

    path: Path

    @property
    def targets_key(self) -> Path:
        return self.path / "targets.pem"

    def root_key(self, number: int) -> Path:
        return self.path / f"root-{number}.pem"

    def publisher_key(self, name: str) -> Path:
        return self.path / f"publisher-{name}.pem"

    def first_metadata(self, role: str) -> Path:
        """Return the path of a role's version 1, signed by ``keys init``."""
        return self.path / f"1.{role}.json"

    @property
    def verified(self) -> Path:
        return self.path / "verified"

    @property
    def sent(self) -> Path:
        """Metadata signed here that the server has accepted, which ``keys restore`` can repeat."""
        return self.path / "sent"

    def remember_sent(self, update: Update) -> None:
        """Store metadata that the server has accepted."""
        self.sent.mkdir(exist_ok=True)
        roles = dict(update.delegated)
        if update.targets is not None:
            roles[Targets.type] = update.targets
        if update.root is not None:
            version = parse(Root, update.root, Root.type).signed.version
            roles[f"{version}.root"] = update.root
        for name, data in roles.items():
            partial = self.sent / f"{name}.part"
            partial.write_bytes(data)
            partial.replace(self.sent / f"{name}.json")

    def metadata_files(self) -> list[Path]:
        """Return the metadata of targets and publishers that was verified or sent here."""
        return [
            path
            for folder in (self.verified, self.sent)
            for path in sorted(folder.glob("[a-z]*.json"))
            if path.name not in {"root.json", "snapshot.json", "timestamp.json"}
        ]

    def roots(self) -> list[Path]:
        """Return every root after the first that was verified or sent here."""
        found = [
            *(self.verified / "root_history").glob("*.root.json"),
            *self.sent.glob("*.root.json"),
        ]
        by_version = {int(path.name.partition(".")[0]): path for path in found}
        return [path for version, path in sorted(by_version.items()) if version > 1]

    def key_files(self) -> list[Path]:
        return sorted(self.path.glob("*.pem"))

    @property
    def is_signed(self) -> bool:
        """True if ``keys init`` has signed the root, its last step."""
        return self.first_metadata(Root.type).exists()

    def read_first(self, role: str) -> bytes:
        """Read ``first_metadata``; raise RefusedError before ``keys init``."""
        path = self.first_metadata(role)
        try:
            with path.open("rb") as file:
                return file.read(MAX_METADATA_BYTES + 1)
        except OSError as error:
            raise RefusedError(
                f"cannot read {path}: {error.strerror}",
                advice="Name the folder that `flotilla keys init` filled with --keys.",
            ) from error

    def read_newest(self, role: str) -> bytes:
        """Read the metadata of a role that was verified last, else its first."""
        path = self.verified / f"{role}.json"
        return path.read_bytes() if path.exists() else self.read_first(role)

    def write_first(self, role: str, data: bytes) -> None:
        """Store version 1 of a role atomically."""
        path = self.first_metadata(role)
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def load_or_make(self, path: Path, passphrase: str) -> CryptoSigner:
        """Load the key in this file, or make it."""
        if path.exists():
            return load_key(path, passphrase)
        signer = generate_key()
        write_key(path, signer, passphrase)
        return signer

    def next_key(self, path: Path) -> Path:
        """Return the path of the successor of the key in ``path``, until the server accepts it."""
        return path.with_name(f"{path.stem}-next.pem")

    def take_over(self, path: Path) -> None:
        """Promote the successor to the key; move the replaced key to ``retired/``."""
        successor = self.next_key(path)
        if path.exists():
            retired = self.path / "retired"
            retired.mkdir(mode=0o700, exist_ok=True)
            count = len(list(retired.iterdir()))
            path.rename(retired / f"{path.stem}-{count + 1}.pem")
        successor.rename(path)

    @property
    def pending(self) -> Path:
        return self.path / "pending.json"


def check_publisher(name: str) -> None:
    """Raise a usage error for an impossible publisher name."""
    try:
        msgspec.convert(f"{name}/any", QualifiedName)
    except msgspec.ValidationError as error:
        raise click.UsageError(
            f"{name!r} cannot be a publisher's name: up to 39 lower-case letters, digits, dashes"
        ) from error
    if name in {*TOP_LEVEL_ROLE_NAMES, DIRECTOR, DIRECTOR_ROOT}:
        raise click.UsageError(f"{name!r} is the name of a role; choose another for the publisher")


def folder_option(command: Any) -> Any:
    """Add the option for the key folder."""
    return click.option(
        "--dir",
        "--keys",
        "folder",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        default=DEFAULT_FOLDER,
        show_default=True,
        help="Folder of the keys.",
    )(command)


def passphrase_option(command: Any) -> Any:
    """Add the option for unattended use; without it the variable, then a prompt."""
    return click.option(
        "--passphrase-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help=f"First line is the keys' passphrase; default ${PASSPHRASE_VARIABLE}, else a prompt.",
    )(command)


def read_passphrase(file: Path | None, *, confirm: bool = False) -> str:
    """Read the passphrase of a folder's keys; raise RefusedError without a source or terminal."""
    if file is not None:
        with file.open("rb") as source:
            line = source.readline(_MAX_PASSPHRASE_BYTES)
        return line.decode(errors="surrogateescape").rstrip("\r\n")
    from_environment = os.environ.get(PASSPHRASE_VARIABLE)
    if from_environment:
        return from_environment
    if not sys.stdin.isatty():
        raise RefusedError(
            "the keys' passphrase is needed, and there is no terminal to ask for it",
            advice=f"Set {PASSPHRASE_VARIABLE}, or name a file with --passphrase-file.",
        )
    answer: str = click.prompt(
        "Passphrase of the signing keys", hide_input=True, confirmation_prompt=confirm, err=True
    )
    return answer
