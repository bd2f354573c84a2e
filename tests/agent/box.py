"""A complete box without a network, which can be killed after any stored state.

Journal, store and the fake runtime's worker processes are real; the server is in memory.
"""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from agent.backoff import Backoff
from agent.errors import SourceUnavailableError
from agent.journal import Assignment, Journal, Receipt, reference_of
from agent.serving import Serving
from agent.storage.download import Downloader
from agent.storage.file_store import FileStore
from agent.supervisor import Supervisor
from agent.update.engine import Status, UpdateEngine
from agent.update.keeper import Keeper
from agent.update.loading import Loader
from agent.update.machine import State
from agent.update.steps import Steps
from artifact.device_facts import DeviceFacts, MicroBenchmark
from artifact.errors import UntrustedError
from artifact.manifest import (
    Adapter,
    Check,
    CompletionCheck,
    Component,
    File,
    ModelVersion,
    PerplexityCheck,
    Probation,
    Release,
    Route,
    SelectionPolicy,
    Variant,
    encode_release,
)
from artifact.trust.statements import DirectedRelease, Directive, VerifiedRelease
from runtimes.fake import FakeModel, write_model
from tests.agent.chunk_server import ChunkServer

MIB = 1 << 20
FIRST_THAT_FITS = SelectionPolicy()
CHECKS = (
    PerplexityCheck(name="reads", slot="chat", text="Sixteen or more letters.", maximum=20.0),
    CompletionCheck(name="talks", slot="chat", prompt="Hello", max_tokens=4, min_tokens=2),
)


async def eventually(ready: Callable[[], object], seconds: float = 10) -> None:
    """Poll for an effect of another task or process that sets no event."""
    async with asyncio.timeout(seconds):
        while not ready():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


class Killed(BaseException):
    """The process was killed here."""


class Publisher:
    """Implements agent.update.steps.Verifier; only published releases are listed."""

    def __init__(self) -> None:
        self.listed: dict[str, VerifiedRelease] = {}
        self.reachable = asyncio.Event()
        self.reachable.set()
        self.asked = 0

    async def directive(self, assignment: Assignment) -> Directive:
        """Return the directive of an honest director for an assignment."""
        known = self.listed.get(assignment.release)
        release = None
        if assignment.release:
            length, counter = (known.length, known.counter) if known else (1, 1)
            release = DirectedRelease(
                assignment.release, length, assignment.manifest_sha256, counter
            )
        return Directive("box", assignment.generation, release)

    async def resolve(self, reference: str) -> VerifiedRelease:
        self.asked += 1
        if not self.reachable.is_set():
            raise SourceUnavailableError("offline")
        if reference not in self.listed:
            raise UntrustedError(f"acme does not list {reference}")
        return self.listed[reference]


class World:
    """The parts that outlast a process: the disk and the server."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.server = ChunkServer()
        self.publisher = Publisher()
        self.model_memory_bytes = 64 * MIB
        # Memory of every variant per token of context.
        self.context_bytes = 0
        self.free_memory_bytes = 1 << 40
        self.adapter_files: list[File] = []
        self.runtimes = {"fake": "1"}

    def variant(self, name: str, model: FakeModel) -> Variant:
        """Build a variant whose one file is this fake model."""
        path = (
            self.root / "published" / f"{name}-{hashlib.sha256(repr(model).encode()).hexdigest()}"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        file = self.server.add(write_model(path, model))
        return Variant(
            name=name,
            runtime="fake",
            format="fake",
            quantization=model.quantization,
            files=(File(name="model.fake", size=file.size, sha256=file.sha256, index=file.index),),
            memory_bytes=model.memory_bytes,
            context_length=model.context_length,
            context_bytes=self.context_bytes,
        )

    def adapter(self, name: str, made: FakeModel, base: ModelVersion) -> Adapter:
        """Build an adapter bound to every file of a model."""
        (file,) = self.variant(name, made).files
        self.adapter_files.append(file)
        return Adapter(
            name=name,
            model=f"acme/{name}",
            version="1",
            file=file,
            bases=tuple(file.sha256 for variant in base.variants for file in variant.files),
        )

    def publish(
        self,
        version: str,
        *models: FakeModel,
        soak_seconds: float = 0.0,
        policy: SelectionPolicy = FIRST_THAT_FITS,
        adapters: dict[str, FakeModel] | None = None,
        checks: tuple[Check, ...] = CHECKS,
    ) -> Assignment:
        """Publish a release with one slot and a variant per model (v0, v1, ...)."""
        models = models or (FakeModel(reply=f"This is release {version}. "),)
        model = ModelVersion(
            name="acme/model",
            version=version,
            task=models[0].task,
            variants=tuple(self.variant(f"v{i}", each) for i, each in enumerate(models)),
        )
        release = Release(
            schema=1,
            name="acme/assistant",
            version=version,
            counter=int(version),
            components=(
                Component(
                    slot="chat",
                    model=model,
                    adapters=tuple(
                        self.adapter(name, each, model) for name, each in (adapters or {}).items()
                    ),
                ),
            ),
            routes=(Route(name="assistant", slot="chat"),),
            probation=Probation(
                checks=checks,
                benchmark_tokens=4,
                benchmark_repetitions=1,
                soak_seconds=float(soak_seconds),
            ),
            selection=policy,
        )
        return self.listed(release)

    def listed(self, release: Release) -> Assignment:
        """Publish a release whose version number is also its counter; return its assignment."""
        version = release.version
        manifest = encode_release(release)
        digest = hashlib.sha256(manifest)
        self.server.chunks[digest.digest()] = manifest
        self.publisher.listed[release.reference] = VerifiedRelease(
            release.reference,
            len(manifest),
            digest.hexdigest(),
            release.counter,
            0,
            {"timestamp": int(version)},
        )
        return Assignment(
            generation=int(version), release=release.reference, manifest_sha256=digest.hexdigest()
        )

    def facts(self) -> DeviceFacts:
        return DeviceFacts(
            architecture="x86_64",
            cpu_model="test",
            isa=(),
            cores=2,
            memory_bytes=1 << 34,
            model_memory_bytes=self.model_memory_bytes,
            benchmark=MicroBenchmark(1e9, 1e9, 1e9),
            runtimes=self.runtimes,
        )


class Life:
    """One run of the agent's process on that disk."""

    def __init__(self, world: World, *, die_in: State | None = None) -> None:
        self.world = world
        self.journal = Journal(world.root / "journal.db")
        self.store = FileStore(world.root / "store")
        self.supervisor = Supervisor(
            free_bytes=lambda: world.free_memory_bytes,
            budget_bytes=lambda: world.model_memory_bytes,
        )
        self.serving = Serving(self.supervisor, drain_seconds=5)
        self.loader = Loader(self.store, self.supervisor, self.serving)
        self.chain: list[str] = []
        # Called whenever the status changes.
        self.listeners: list[Callable[[], None]] = []
        self._die_in = die_in
        self._changes = asyncio.Event()
        self._record = self.journal.record
        self.journal.record = self._spy  # type: ignore[method-assign]
        self.steps = Steps(
            journal=self.journal,
            store=self.store,
            source=world.server,
            downloader=Downloader(self.store, world.server, backoff=lambda: Backoff(0, 0.01)),
            verifier=world.publisher,
            loader=self.loader,
            keeper=Keeper(
                self.journal,
                self.loader,
                self.serving,
                changed=self._changed,
                backoff=lambda: Backoff(0, 0.01),
            ),
            serving=self.serving,
            facts=world.facts,
            meter=None,
            changed=self._changed,
            backoff=lambda: Backoff(0, 0.01),
        )
        self.engine = UpdateEngine(self.journal, self.steps, changed=self._changed)
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self.engine.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the process: it stores no more, and its workers are gone."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.supervisor.close()
        self.journal.close()

    def _changed(self) -> None:
        self._changes.set()
        for listener in self.listeners:
            listener()

    def _spy(self, **changes: Any) -> None:
        self._record(**changes)
        update = changes.get("update")
        if update is not None:
            self.chain.append(str(update.state))
            if update.state == self._die_in:
                raise Killed

    async def until(self, state: State, generation: int) -> Status:
        """Wait until an assignment reaches a state; raise the error that ended the process."""
        async with asyncio.timeout(30):
            while True:
                status = self.engine.status()
                if (status.state, status.generation) == (state, generation):
                    return status
                assert self.task is not None
                self._changes.clear()
                change = asyncio.ensure_future(self._changes.wait())
                await asyncio.wait({change, self.task}, return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
                if self.task.done():
                    self.task.result()

    async def do(self, assignment: Assignment) -> Receipt:
        """Assign, wait for the end of the update, and return its receipt."""
        self.engine.assign(assignment)
        await self.until(State.IDLE, assignment.generation)
        receipts = {receipt.generation: receipt for receipt in self.journal.receipts()}
        return receipts[assignment.generation]

    @property
    def serves(self) -> str:
        """Return the reference of the serving release, empty without one."""
        return self.serving.deployment.release.reference if self.serving.deployment else ""

    @property
    def pointers(self) -> tuple[str, str, str]:
        """Return the references of candidate, current and last_good."""
        pointers = self.journal.pointers()
        return (
            reference_of(pointers.candidate),
            reference_of(pointers.current),
            reference_of(pointers.last_good),
        )

    def files(self) -> set[str]:
        """Return the digests of the files on the disk."""
        return {path.name for path in (self.world.root / "store" / "files").iterdir()}
