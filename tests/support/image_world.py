"""A repository in memory, through the same functions that the server and the publishers use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root, Targets

from artifact.manifest import (
    Component,
    File,
    ModelVersion,
    Release,
    Task,
    Variant,
    encode_release,
    target_path,
)
from artifact.trust.ceremony import delist, next_version, replace_key
from artifact.trust.floors import Floors
from artifact.trust.image import (
    OnlineKeys,
    add_release,
    initial_publisher,
    initial_root,
    initial_targets,
)
from artifact.trust.keys import generate_key, generate_online_key, load_online_key
from artifact.trust.metadata import Roles, file_name
from artifact.trust.repository import OnlineSigners, accept_release, initialise, refresh
from artifact.trust.update import Update, accept_update
from artifact.trust.verify import ImageVerifier

START = datetime(2026, 11, 24, 12, tzinfo=UTC)
# Version of the first snapshot and timestamp; later ones within the second count up.
FIRST_VERSION = int(START.timestamp())


def manifest(
    name: str = "acme/chat", version: str = "1", counter: int = 1, description: str = ""
) -> bytes:
    """The smallest release that there is."""
    file = File(name="m.gguf", size=1, sha256="ab" * 32, index="cd" * 32)
    variant = Variant(
        name="q8",
        runtime="llama_cpp",
        format="gguf",
        quantization="q8_0",
        files=(file,),
        memory_bytes=1,
    )
    model = ModelVersion(
        name="acme/tiny", version="1", task=Task.TEXT_GENERATION, variants=(variant,)
    )
    return encode_release(
        Release(
            schema=1,
            name=name,
            version=version,
            counter=counter,
            description=description,
            components=(Component(slot="chat", model=model),),
        )
    )


@dataclass
class Numbers:
    """Floors as the agent's journal keeps them, in memory."""

    kept: dict[str, int] = field(default_factory=dict)

    def floors(self) -> dict[str, int]:
        return dict(self.kept)

    def raise_floors(self, numbers: Mapping[str, int]) -> None:
        for name, number in numbers.items():
            self.kept[name] = max(number, self.kept.get(name, 0))


@dataclass
class World:
    """Offline keys of two publishers, the server with its store, and the time."""

    root: CryptoSigner = field(default_factory=generate_key)
    targets: CryptoSigner = field(default_factory=generate_key)
    publishers: dict[str, CryptoSigner] = field(
        default_factory=lambda: {"acme": generate_key(), "beta": generate_key()}
    )
    online: OnlineSigners = field(
        default_factory=lambda: OnlineSigners(
            load_online_key(generate_online_key()), load_online_key(generate_online_key())
        )
    )
    now: datetime = START
    roles: dict[str, bytes] = field(default_factory=dict, repr=False)
    store: dict[str, bytes] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        keys = OnlineKeys(self.online.snapshot.public_key, self.online.timestamp.public_key)
        root = initial_root(
            [self.root],
            threshold=1,
            targets_key=self.targets.public_key,
            online=keys,
            now=self.now,
        )
        targets = initial_targets(
            self.targets,
            {name: signer.public_key for name, signer in self.publishers.items()},
            now=self.now,
        )
        delegated = {
            name: initial_publisher(signer, now=self.now)
            for name, signer in self.publishers.items()
        }
        self.keep(initialise(root, targets, delegated, self.online, now=self.now))

    def keep(self, changed: Roles) -> None:
        self.roles.update(changed)
        self.store.update({file_name(role, data): data for role, data in changed.items()})

    def signed(self, data: bytes, publisher: str = "acme", lowest: int | None = None) -> bytes:
        """The publisher's next metadata, listing this manifest too."""
        signer = self.publishers[publisher]
        return add_release(self.roles[publisher], data, signer, now=self.now, lowest=lowest)

    def publish(self, data: bytes, publisher: str = "acme", lowest: int | None = None) -> None:
        accepted = accept_release(
            self.roles, self.signed(data, publisher, lowest), data, self.online, now=self.now
        )
        self.keep(accepted.changed)

    def delist(self, *references: str, publisher: str = "acme") -> None:
        paths = [target_path(reference) for reference in references]
        data = next_version(
            Targets,
            self.roles[publisher],
            publisher,
            [self.publishers[publisher]],
            now=self.now,
            edit=delist(publisher, paths),
        )
        self.update(Update(delegated={publisher: data}))

    def update(self, update: Update, online: OnlineSigners | None = None) -> None:
        """What the server does with a change by the offline keys."""
        self.online = online or self.online
        self.keep(accept_update(self.roles, update, self.online, now=self.now))

    def next_root(self, edit: Callable[[Root], None], *others: CryptoSigner) -> bytes:
        signers = [self.root, *others]
        return next_version(Root, self.roles["root"], "root", signers, now=self.now, edit=edit)

    def replace_timestamp_key(self) -> None:
        signer = load_online_key(generate_online_key())
        old = self.online.timestamp.public_key.keyid
        root = self.next_root(replace_key("timestamp", old, signer.public_key))
        self.update(Update(root=root), OnlineSigners(self.online.snapshot, signer))

    def refresh(self) -> None:
        """The server's job that renews what the online keys signed."""
        self.keep(refresh(self.roles, self.online, now=self.now))

    def pass_time(self, time: timedelta) -> None:
        self.now += time

    def verifier(self, cache: Path, floors: Floors | None = None) -> ImageVerifier:
        return ImageVerifier(
            cache,
            self.store["1.root.json"],
            self.store.get,
            clock=lambda: self.now,
            floors=floors,
        )
