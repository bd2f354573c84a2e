"""CPU cost on a device of verifying that it may install a release, without hashing its files.

Both repositories are walked as for every assignment, by the agent's own verifiers, with floors in a
real journal on disk: a new assignment, timestamp, snapshot and listing each time, a cache from the
time before. The peer is python-tuf alone on the same metadata of the image repository.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tuf.ngclient import Updater

from agent.journal import Journal
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
from artifact.trust.client import _Fetcher
from artifact.trust.director import DirectorVerifier, direct, make_director_root
from artifact.trust.image import (
    OnlineKeys,
    add_release,
    initial_publisher,
    initial_root,
    initial_targets,
)
from artifact.trust.keys import generate_key
from artifact.trust.metadata import file_name
from artifact.trust.repository import OnlineSigners, accept_release, initialise
from artifact.trust.statements import (
    DirectedRelease,
    Directive,
    DirectorMetadata,
    check_agreement,
    check_directive,
    check_manifest,
)
from artifact.trust.verify import ImageVerifier
from benchmarks.result import Result

ROUNDS = 30
LISTED = (1, 100)
BAR_MS = 10.0
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Repositories:
    """An in-memory publisher and server."""

    store: dict[str, bytes] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        root, targets, self.acme = generate_key(), generate_key(), generate_key()
        self.online = OnlineSigners(generate_key(), generate_key())
        self.director = generate_key()
        self.director_root = make_director_root(generate_key(), self.director, now=NOW)
        keys = OnlineKeys(self.online.snapshot.public_key, self.online.timestamp.public_key)
        first = initial_root(
            [root], threshold=1, targets_key=targets.public_key, online=keys, now=NOW
        )
        delegating = initial_targets(targets, {"acme": self.acme.public_key}, now=NOW)
        listing = {"acme": initial_publisher(self.acme, now=NOW)}
        self.roles: dict[str, bytes] = {}
        self._keep(initialise(first, delegating, listing, self.online, now=NOW))

    def _keep(self, changed: Mapping[str, bytes]) -> None:
        self.roles.update(changed)
        self.store.update({file_name(role, data): data for role, data in changed.items()})

    def publish(self) -> tuple[str, bytes, DirectorMetadata]:
        """Publish the next release; return its reference, manifest and assignment."""
        self.count += 1
        data = manifest(self.count)
        listing = add_release(self.roles["acme"], data, self.acme, now=NOW)
        accepted = accept_release(self.roles, listing, data, self.online, now=NOW)
        self._keep(dict(accepted.changed))
        listed = accepted.listed
        reference = accepted.release.reference
        wanted = DirectedRelease(reference, listed.length, listed.sha256, listed.counter)
        directive = Directive("box", self.count, wanted)
        signed = direct(directive, self.director, assigned_at=NOW, now=NOW)
        return reference, data, signed


def manifest(counter: int) -> bytes:
    """Return a release of two models with four variants each."""
    models = [
        ModelVersion(
            name=f"acme/{slot}",
            version="1",
            task=Task.TEXT_GENERATION,
            variants=tuple(
                Variant(
                    name=f"q{bits}",
                    runtime="llama_cpp",
                    format="gguf",
                    quantization=f"q{bits}",
                    files=(File(name="m.gguf", size=1 << 30, sha256="ab" * 32, index="cd" * 32),),
                    memory_bytes=1 << 30,
                )
                for bits in (4, 5, 8, 16)
            ),
        )
        for slot in ("chat", "vision")
    ]
    components = tuple(
        Component(slot=model.name.partition("/")[2], model=model) for model in models
    )
    release = Release(
        schema=1,
        name="acme/assistant",
        version=str(counter),
        counter=counter,
        components=components,
    )
    return encode_release(release)


class Box:
    """Verification as the agent does it, with a journal and both repositories."""

    def __init__(self, directory: Path, server: Repositories) -> None:
        directory.mkdir(parents=True)
        self.journal = Journal(directory / "journal.db")
        self.server = server
        self.image = ImageVerifier(
            directory / "image",
            server.store["1.root.json"],
            server.store.get,
            clock=lambda: NOW,
            floors=self.journal,
        )
        self.director = DirectorVerifier(
            server.director_root,
            "box",
            clock=lambda: NOW,
            floors=self.journal,
        )

    def verify(self, reference: str, data: bytes, signed: DirectorMetadata) -> None:
        directive = self.director.directive(signed)
        check_directive(directive, directive.generation, reference)
        verified = self.image.resolve(reference)
        check_agreement(directive, verified, "0" * 12)
        check_manifest(verified, data)


class PythonTuf:
    """Verification of the same image repository by python-tuf alone."""

    def __init__(self, directory: Path, server: Repositories) -> None:
        self.directory, self.server = directory, server
        directory.mkdir(parents=True)

    def verify(self, reference: str, data: bytes, signed: DirectorMetadata) -> None:
        del data, signed
        updater = Updater(
            str(self.directory),
            "metadata:/",
            fetcher=_Fetcher(self.server.store.get),
            bootstrap=self.server.store["1.root.json"],
        )
        updater._trusted_set.reference_time = NOW  # noqa: SLF001 - there is no other way
        assert updater.get_targetinfo(target_path(reference)) is not None


def run(directory: Path) -> list[Result]:
    """Measure the CPU time of one verification, with short and long listings."""
    return [_measured(directory / str(listed), listed) for listed in LISTED]


def _measured(directory: Path, listed: int) -> Result:
    server = Repositories()
    for _ in range(listed - 1):
        server.publish()
    box, peer = Box(directory / "box", server), PythonTuf(directory / "peer", server)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(ROUNDS + 1):
        release = server.publish()
        ours.append(_cpu_ms(box.verify, *release))
        theirs.append(_cpu_ms(peer.verify, *release))
    box.journal.close()
    # The first run fills the caches.
    ours, theirs = ours[1:], theirs[1:]
    mean = statistics.mean(ours)
    return Result(
        what=f"verify a release, {listed} to {listed + ROUNDS} listed",
        figure=f"{mean:.1f} ± {statistics.stdev(ours):.1f} ms CPU",
        peer=f"python-tuf, image only: {statistics.mean(theirs):.1f} ms",
        bar=f"< {BAR_MS:g} ms CPU beyond hashing files",
        met=mean < BAR_MS,
        note=f"{ROUNDS} new assignments, both repositories, floors flushed to disk",
    )


def _cpu_ms(call: Callable[..., None], *arguments: object) -> float:
    began = time.process_time()
    call(*arguments)
    return (time.process_time() - began) * 1000


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for row in run(Path(scratch)):
            print(*row.cells(), sep=" | ")
