"""The operator's folder of offline keys: what lies in it, and how it is unlocked.

    root-1.pem ...          root keys, encrypted
    targets.pem             the key that names publishers, encrypted
    publisher-NAME.pem      one per publisher, encrypted
    1.root.json ...         what was signed with them first; root is where all trust starts
    verified/               metadata that was verified last: an older one is refused
    ...-next.pem            a new key, which takes the old one's name once the server knows it
    retired/                keys that no longer sign anything
    pending.json            a change that still lacks signatures of other holders

One folder belongs to one server, since its root names that server's online keys.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import TOP_LEVEL_ROLE_NAMES, Root

from artifact.manifest import QualifiedName
from artifact.trust.keys import generate_key, load_key, write_key
from artifact.trust.metadata import MAX_METADATA_BYTES
from controlplane.cli.app import RefusedError

DEFAULT_FOLDER = Path("~/.config/flotilla/keys")
PASSPHRASE_VARIABLE = "FLOTILLA_KEY_PASSPHRASE"  # noqa: S105 - a name, not a passphrase

_MAX_PASSPHRASE_BYTES = 1024

# What `flotilla keys rotate` calls the keys of the other repository.
DIRECTOR = "director"
DIRECTOR_ROOT = "director-root"


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """Paths in a key folder, which need not be there yet."""

    path: Path

    @property
    def targets_key(self) -> Path:
        return self.path / "targets.pem"

    def root_key(self, number: int) -> Path:
        return self.path / f"root-{number}.pem"

    def publisher_key(self, name: str) -> Path:
        return self.path / f"publisher-{name}.pem"

    def first_metadata(self, role: str) -> Path:
        """Version 1 of a role, as ``keys init`` signed it."""
        return self.path / f"1.{role}.json"

    @property
    def verified(self) -> Path:
        return self.path / "verified"

    def key_files(self) -> list[Path]:
        return sorted(self.path.glob("*.pem"))

    @property
    def is_signed(self) -> bool:
        """Whether ``keys init`` got as far as signing the root, which it does last."""
        return self.first_metadata(Root.type).exists()

    def read_first(self, role: str) -> bytes:
        """The bytes of ``first_metadata``; RefusedError before ``keys init``."""
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
        """What was verified last of a role, or else its first metadata."""
        path = self.verified / f"{role}.json"
        return path.read_bytes() if path.exists() else self.read_first(role)

    def write_first(self, role: str, data: bytes) -> None:
        """Store version 1 of a role, whole or not at all."""
        path = self.first_metadata(role)
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def load_or_make(self, path: Path, passphrase: str) -> CryptoSigner:
        """The key in this file; a new one, written there, when there is no such file."""
        if path.exists():
            return load_key(path, passphrase)
        signer = generate_key()
        write_key(path, signer, passphrase)
        return signer

    def next_key(self, path: Path) -> Path:
        """Where the successor of the key in ``path`` waits until the server has taken it."""
        return path.with_name(f"{path.stem}-next.pem")

    def take_over(self, path: Path) -> None:
        """The successor becomes the key; what it replaces is kept apart."""
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
    """A usage error for what cannot be a publisher's name."""
    try:
        msgspec.convert(f"{name}/any", QualifiedName)
    except msgspec.ValidationError as error:
        raise click.UsageError(
            f"{name!r} cannot be a publisher's name: up to 39 lower-case letters, digits, dashes"
        ) from error
    if name in {*TOP_LEVEL_ROLE_NAMES, DIRECTOR, DIRECTOR_ROOT}:
        raise click.UsageError(f"{name!r} is the name of a role; choose another for the publisher")


def folder_option(command: Any) -> Any:
    """Where the keys lie."""
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
    """The option for unattended use; without it the variable, then a prompt."""
    return click.option(
        "--passphrase-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help=f"First line is the keys' passphrase; default ${PASSPHRASE_VARIABLE}, else a prompt.",
    )(command)


def read_passphrase(file: Path | None, *, confirm: bool = False) -> str:
    """The passphrase of all keys in a folder; RefusedError when there is nobody to ask."""
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
