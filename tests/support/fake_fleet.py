"""Model versions, releases and worker specs around the fake runtime, for the agent's tests."""

import hashlib
from pathlib import Path

from agent.supervisor import WorkerSpec
from artifact.manifest import (
    Component,
    File,
    ModelVersion,
    Probation,
    Release,
    Route,
    Task,
    Variant,
)
from runtimes.fake import FakeModel, write_model

MEMORY_LIMIT_BYTES = 64 << 20


def model_version(path: Path, model: FakeModel, *, version: str = "1") -> ModelVersion:
    """A model version of one variant, whose one file is written to ``path``."""
    data = write_model(path, model).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return ModelVersion(
        name="demo/fake",
        version=version,
        task=model.task,
        variants=(
            Variant(
                name="full",
                runtime="fake",
                format="fake",
                quantization=model.quantization,
                files=(File(name="model.fake", size=len(data), sha256=digest, index=digest),),
                memory_bytes=model.memory_bytes,
                context_length=model.context_length if model.task is Task.TEXT_GENERATION else 0,
            ),
        ),
    )


def worker_spec(
    directory: Path,
    model: FakeModel | None = None,
    *,
    slot: str = "chat",
    version: str = "1",
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
) -> WorkerSpec:
    """What a supervisor starts; the model's file lies in ``directory``."""
    path = directory / f"{slot}-{version}.fake"
    described = model_version(path, model or FakeModel(), version=version)
    variant = described.variants[0]
    return WorkerSpec(
        slot=slot,
        release=f"demo/fleet@{version}",
        model=described,
        variant=variant,
        files={"model.fake": path},
        context_length=variant.context_length,
        memory_limit_bytes=memory_limit_bytes,
    )


def release_of(*specs: WorkerSpec, routes: tuple[Route, ...] = ()) -> Release:
    """A release with a component for each spec."""
    name, _, version = specs[0].release.partition("@")
    return Release(
        schema=1,
        name=name,
        version=version,
        counter=1,
        components=tuple(Component(slot=spec.slot, model=spec.model) for spec in specs),
        routes=routes,
        probation=Probation(benchmark_tokens=8, benchmark_repetitions=2),
    )
