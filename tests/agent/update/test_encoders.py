"""Whole updates with the demo's embedding models on the real engines."""

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
from demo_models import weights
from demo_models.gguf_export import write_gguf
from demo_models.onnx_export import write_folder

from agent.journal import Assignment, Receipt
from agent.update.machine import State
from artifact.manifest import (
    Component,
    EmbeddingCheck,
    ModelVersion,
    Probation,
    Release,
    Route,
    Variant,
    check_publishable,
)
from runtimes.build import EXPECTED_FILE, BuildRequest, VariantRequest, build
from runtimes.build.expected import Expected
from tests.agent.box import MIB, Life, World

VARIANTS = (VariantRequest("q8_0", "q8_0", "llama_cpp"), VariantRequest("int8", "int8", "onnx"))
TEXT = "The import statement combines two operations."


@dataclass(frozen=True)
class Encoders:
    """Return folders built by `flotilla model build` and the vectors of the sound source."""

    sound: Path
    broken: Path
    expected: Expected


@pytest.fixture(scope="module")
def encoders(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoders:
    root = tmp_path_factory.mktemp("encoders")
    write_gguf(
        root / "broken.gguf",
        "broken",
        weights.Shape(),
        weights.vocabulary(),
        weights.broken().__getitem__,
        encoder=True,
    )
    write_folder(root / "broken-onnx", weights.Shape(), weights.broken(), encoder=True)
    lines = (weights.HERE / "heldout.txt").read_text(encoding="utf-8").splitlines()
    (root / "texts.txt").write_text("\n".join(lines[:20]), encoding="utf-8")
    request = BuildRequest(
        sources=(demo_models / "embed.gguf", demo_models / "embed-onnx"),
        name="acme/encoder",
        version="1",
        variants=VARIANTS,
        out=root / "sound",
        evaluation=root / "texts.txt",
    )
    build(request, lambda *_: None)
    sources = (root / "broken.gguf", root / "broken-onnx")
    broken = replace(request, sources=sources, version="2", out=root / "broken", evaluation=None)
    build(broken, lambda *_: None)
    said = (root / "sound" / EXPECTED_FILE).read_bytes()
    return Encoders(root / "sound", root / "broken", msgspec.json.decode(said, type=Expected))


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.model_memory_bytes = 256 * MIB
    world.runtimes = {"llama_cpp": "1", "onnx": "1"}
    return world


def published(world: World, version: str, folder: Path, name: str, said: Expected) -> Assignment:
    """Return a release of one built variant whose vectors must be close to the source's."""
    model = msgspec.json.decode((folder / "model.json").read_bytes(), type=ModelVersion)
    (variant,) = (each for each in model.variants if each.name == name)
    check = EmbeddingCheck(name="means", slot="embed", expected=said.expected, min_cosine=0.95)
    release = Release(
        schema=1,
        name="acme/search",
        version=version,
        counter=int(version),
        components=(
            Component(
                slot="embed",
                model=msgspec.structs.replace(model, variants=(_served(world, folder, variant),)),
            ),
        ),
        routes=(Route(name="embed", slot="embed"),),
        probation=Probation(checks=(check,), benchmark_repetitions=1, soak_seconds=0.0),
    )
    check_publishable(release)
    return world.listed(release)


def _served(world: World, folder: Path, variant: Variant) -> Variant:
    files = tuple(world.server.add(folder / variant.name / file.name) for file in variant.files)
    return msgspec.structs.replace(variant, files=files)


def outcomes(receipt: Receipt) -> dict[str, str]:
    return {check.name: check.outcome for check in receipt.checks}


@pytest.mark.parametrize("name", [variant.name for variant in VARIANTS])
async def test_a_sound_encoder_is_deployed_and_a_broken_one_is_not(
    world: World, encoders: Encoders, name: str
) -> None:
    """Reject vectors of the right shape and wrong direction, which the benchmark would accept."""
    async with Life(world) as life:
        sound = await life.do(published(world, "1", encoders.sound, name, encoders.expected))
        assert (sound.outcome, sound.detail) == (State.COMMITTED, "")
        passed = dict.fromkeys(("embedding", "means", "benchmark", "cost"), "passed")
        assert outcomes(sound) == passed
        async with life.serving.lease("embed") as worker:
            before, _ = await worker.embed([TEXT])
        broken = await life.do(published(world, "2", encoders.broken, name, encoders.expected))
        assert (broken.outcome, broken.reason) == (State.REJECTED, "probation_failed")
        assert "means failed: cosine of text" in broken.detail
        assert outcomes(broken) == {"embedding": "passed", "means": "failed", "cost": "passed"}
        assert life.serves == "acme/search@1"
        async with life.serving.lease("embed") as worker:
            assert (await worker.embed([TEXT]))[0] == before


async def test_an_encoder_of_other_dimensions_is_refused(world: World, encoders: Encoders) -> None:
    short = Expected(
        tuple(
            msgspec.structs.replace(one, vector=one.vector[:128])
            for one in encoders.expected.expected
        )
    )
    async with Life(world) as life:
        receipt = await life.do(published(world, "1", encoders.sound, "q8_0", short))
    assert (receipt.outcome, receipt.reason) == (State.REJECTED, "probation_failed")
    assert "the model gives 256 dimensions, expected 128" in receipt.detail
