"""Online keys of the image repository, in the server's data directory.

The server holds the keys of snapshot and timestamp, and a successor for each. Once the offline keys
have signed a root that names a successor, the server switches to it and makes the next.
"""

from pathlib import Path

from securesystemslib.signer import Signer
from tuf.api.metadata import Root, Snapshot, Timestamp

from artifact.errors import UntrustedError
from artifact.trust.keys import generate_online_key, load_online_key
from artifact.trust.metadata import parse
from artifact.trust.repository import OnlineSigners
from controlplane.services.keys.private_files import read_or_make, replace_durably


class OnlineKeys:
    """Current and next key of each online role, made on the first start."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._load()

    def _load(self) -> None:
        self.current = OnlineSigners(self._signer("snapshot.key"), self._signer("timestamp.key"))
        self.following = OnlineSigners(
            self._signer("snapshot.next.key"), self._signer("timestamp.next.key")
        )

    def _signer(self, name: str) -> Signer:
        return load_online_key(read_or_make(self._directory / name, generate_online_key))

    def named_by(self, root: bytes) -> OnlineSigners:
        """Return the signers that this root names; UntrustedError if they are not this server's."""
        return OnlineSigners(
            self._named(root, Snapshot.type, self.current.snapshot, self.following.snapshot),
            self._named(root, Timestamp.type, self.current.timestamp, self.following.timestamp),
        )

    @staticmethod
    def _named(root: bytes, role: str, *held: Signer) -> Signer:
        keyids = parse(Root, root, Root.type).signed.roles[role].keyids
        for signer in held:
            if [signer.public_key.keyid] == keyids:
                return signer
        raise UntrustedError(
            f"root gives {role} to {keyids}, which are not this server's keys",
            advice="Sign a root that names the keys which this server holds: `flotilla keys`.",
        )

    def settle(self, root: bytes) -> None:
        """Switch to the keys that the current root names and delete the old ones."""
        named = self.named_by(root)
        changing = {
            "snapshot": named.snapshot is self.following.snapshot,
            "timestamp": named.timestamp is self.following.timestamp,
        }
        # The successor overwrites the old key; ``_load`` then makes the next successor.
        for role in [role for role, changes in changing.items() if changes]:
            source = self._directory / f"{role}.next.key"
            replace_durably(source, self._directory / f"{role}.key")
        if any(changing.values()):
            self._load()
