"""The director's keys and its chain of roots, in the server's data directory.

A new root is signed by the key of the previous root and by its own. Devices follow the chain from
the first root, which they have pinned (TUF, 5.3). The newest root names the valid keys: once its
file exists the change has happened, and a start after a crash moves the new keys into place.
"""

from datetime import datetime
from pathlib import Path
from typing import Final

from securesystemslib.signer import Signer
from tuf.api.metadata import Root, Timestamp

from artifact.trust.director import make_director_root, next_director_root
from artifact.trust.keys import generate_online_key, load_online_key
from artifact.trust.metadata import parse
from artifact.trust.statements import MAX_ROOTS
from controlplane.errors import ConflictError, DataDirectoryError
from controlplane.services.keys.private_files import read_or_make, replace_durably, write_private

_ONLINE: Final = "director"
_ROOT: Final = "director-root"


class DirectorKeys:
    """The director's keys, made on the first start; ``now`` dates the first root."""

    def __init__(self, directory: Path, now: datetime) -> None:
        self._directory = directory
        # Join tokens contain its digest.
        self.first_root: bytes = read_or_make(
            directory / "director-root.json",
            lambda: make_director_root(self._signer(_ROOT), self._signer(_ONLINE), now=now),
        )
        self._load()

    @property
    def version(self) -> int:
        """Version of the newest root."""
        return 1 + len(self.roots)

    def rotate(self, version: int, *, root: bool, now: datetime) -> bool:
        """Make the root of this version, with a new key; return False if it exists already.

        ``root`` replaces the key of the root itself, otherwise the key that signs assignments.
        """
        if version <= self.version:
            return False
        successor = self._signer(f"{_ROOT if root else _ONLINE}.next")
        data = next_director_root(
            self._newest,
            self._root,
            now=now,
            successor=successor if root else None,
            online=None if root else successor.public_key,
        )
        # The root file comes first: it names the new key, whose file ``_named`` then moves.
        write_private(self._path(self.version + 1), data)
        self._load()
        return True

    def check_room(self) -> None:
        """Raise ConflictError if devices would not follow another root."""
        if len(self.roots) >= MAX_ROOTS:
            raise ConflictError(
                f"the director's root has been replaced {len(self.roots)} times; devices follow at "
                f"most {MAX_ROOTS}",
                advice="Set up a new server, and enrol the boxes there.",
            )

    def _load(self) -> None:
        roots: list[bytes] = []
        while (path := self._path(len(roots) + 2)).exists():
            roots.append(path.read_bytes())
        self._newest = roots[-1] if roots else self.first_root
        roles = parse(Root, self._newest, Root.type).signed.roles
        self._root = self._named(_ROOT, roles[Root.type].keyids)
        self.online: Signer = self._named(_ONLINE, roles[Timestamp.type].keyids)
        # Every root after the first, which devices have pinned.
        self.roots: tuple[bytes, ...] = tuple(roots)

    def _path(self, version: int) -> Path:
        return self._directory / f"director-root.{version}.json"

    def _named(self, name: str, keyids: list[str]) -> Signer:
        """Load the key that the newest root names, moving a successor into its place if needed."""
        path, following = self._directory / f"{name}.key", self._directory / f"{name}.next.key"
        signer = self._signer(name)
        if signer.public_key.keyid not in keyids and following.exists():
            replace_durably(following, path)
            signer = self._signer(name)
        if signer.public_key.keyid not in keyids:
            raise DataDirectoryError(
                f"{path} is not the key that the newest of the director's roots names",
                advice="Restore the keys folder from your backup; without it every box must enrol "
                "again.",
            )
        return signer

    def _signer(self, name: str) -> Signer:
        return load_online_key(read_or_make(self._directory / f"{name}.key", generate_online_key))
