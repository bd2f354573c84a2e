"""A box with the real verification, before a server whose keys an attack may use.

The image repository is made by the functions of publishers and the server. The box is
tests.agent.box with agent.link.metadata in place of the fake verifier.
"""

import shutil
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from asking import asking
from image_world import World as ImageWorld

from agent.config import DataDir
from agent.journal import Assignment
from agent.link.metadata import StreamedVerifier
from agent.update.engine import UpdateEngine
from agent.update.job import StepFailedError, UpdateJob
from artifact.manifest import split_reference
from artifact.trust.director import direct
from artifact.trust.director import make_director_root as make_root
from artifact.trust.director import next_director_root as next_root
from artifact.trust.keys import generate_key
from artifact.trust.statements import DirectedRelease, Directive, DirectorMetadata
from tests.agent.box import Life, World

DEVICE = "box-1"


class SignedWorld(World):
    """The server, its keys, and the disk of the box."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.image = ImageWorld()
        self.director_root, self.director = generate_key(), generate_key()
        self.data_dir = DataDir(root)
        self.data_dir.image_root.write_bytes(self.image.store["1.root.json"])
        self.data_dir.director_root.write_bytes(
            make_root(self.director_root, self.director, now=self.image.now)
        )
        # Every root after the first.
        self.director_roots: tuple[bytes, ...] = ()
        self.manifests: dict[str, bytes] = {}

    async def metadata(self, name: str) -> bytes | None:
        """Return metadata by name (agent.link.metadata.MetadataSource)."""
        return self.image.store.get(name)

    def clock(self) -> datetime:
        return self.image.now

    def publish(self, version: str, *models: Any, **options: Any) -> Assignment:
        """Publish a version and assign it with its number as the generation."""
        made = super().publish(version, *models, **options)
        manifest = self.server.chunks[bytes.fromhex(made.manifest_sha256)]
        self.manifests[made.release] = manifest
        self.image.publish(manifest)
        return self.assign(made.release, int(version))

    def assign(self, reference: str, generation: int, **claims: Any) -> Assignment:
        """Sign the assignment of an honest director, changed by ``claims``."""
        manifest = self.manifests[reference]
        digest = self.digest(reference)
        counter = int(split_reference(reference)[1])
        release = DirectedRelease(reference, len(manifest), digest, counter)
        device = claims.pop("device", DEVICE)
        return self.signed(replace(release, **claims), generation, device)

    def signed(
        self, release: DirectedRelease | None, generation: int, device: str = DEVICE
    ) -> Assignment:
        """Sign a directive with the director's key, which an attack has stolen."""
        metadata = self.direct(release, generation, device)
        return Assignment(
            generation=generation,
            release=release.reference if release else "",
            manifest_sha256=release.sha256 if release else "",
            director=metadata,
        )

    def direct(
        self, release: DirectedRelease | None, generation: int, device: str = DEVICE
    ) -> DirectorMetadata:
        directive = Directive(device, generation, release)
        now = self.image.now
        return direct(directive, self.director, assigned_at=now, now=now, roots=self.director_roots)

    def replace_director_key(self) -> None:
        """Replace the key as `flotilla keys rotate director` does."""
        current = self.director_roots or (self.data_dir.director_root.read_bytes(),)
        self.director = generate_key()
        root = next_root(
            current[-1],
            self.director_root,
            now=self.image.now,
            successor=None,
            online=self.director.public_key,
        )
        self.director_roots = (*self.director_roots, root)

    def digest(self, reference: str) -> str:
        (digest,) = [
            key.hex()
            for key, data in self.server.chunks.items()
            if data == self.manifests[reference]
        ]
        return digest


class Box(Life):
    """One run of the agent, with the real verification."""

    def __init__(self, world: SignedWorld) -> None:
        super().__init__(world)
        ask = asking(world.data_dir)
        verifier = StreamedVerifier(DEVICE, world, self.journal, ask, clock=world.clock)
        self.steps = replace(self.steps, verifier=verifier)
        self.engine = UpdateEngine(self.journal, self.steps, changed=self._changed)

    async def verify(self, assignment: Assignment) -> tuple[str, str]:
        """Return the reason and the text of a refusal; empty if the box would install."""
        try:
            await self.steps.verify(UpdateJob(assignment))
        except StepFailedError as error:
            return error.reason, str(error)
        return "", ""


def zero_cache(data_dir: DataDir) -> None:
    """Overwrite python-tuf's files with zeros of the same length, as a power cut may."""
    for path in data_dir.metadata.rglob("*.json"):
        if not path.is_symlink():
            path.write_bytes(bytes(path.stat().st_size))


@dataclass(frozen=True)
class Memory:
    """A snapshot of the honest state, restored so that attacks do not accumulate."""

    store: dict[str, bytes]
    roles: dict[str, bytes]
    chunks: dict[bytes, bytes]
    now: datetime
    floors: dict[str, int]
    cache: Path

    @classmethod
    def of(cls, world: SignedWorld, box: Box) -> "Memory":
        cache = world.root / "remembered"
        shutil.copytree(world.data_dir.metadata, cache, symlinks=True)
        return cls(
            dict(world.image.store),
            dict(world.image.roles),
            dict(world.server.chunks),
            world.image.now,
            box.journal.floors(),
            cache,
        )

    def restore(self, world: SignedWorld, box: Box) -> None:
        world.image.store, world.image.roles = dict(self.store), dict(self.roles)
        world.server.chunks = dict(self.chunks)
        world.image.now = self.now
        box.journal._commit({"floors": self.floors}, box.journal._contents.receipts)
        shutil.rmtree(world.data_dir.metadata)
        shutil.copytree(self.cache, world.data_dir.metadata, symlinks=True)
