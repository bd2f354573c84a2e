"""The serving side on the real engines, with the demo's trained language model."""

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from demo_models import weights
from demo_models.gguf_export import write_gguf
from demo_models.onnx_export import write_folder

from agent.probation import Proof, prove
from agent.selection.memory_prediction import PROCESS_BYTES
from agent.supervisor import Supervisor, Worker, WorkerSpec
from artifact.manifest import (
    CompletionCheck,
    Component,
    File,
    ModelVersion,
    PerplexityCheck,
    Probation,
    Task,
    Variant,
)
from runtimes.base import Sampling

HELDOUT = (weights.HERE / "heldout.txt").read_text()[:2000]
PROMPT = "The import statement combines two operations; it searches"
# The engines' own figures, as `flotilla model build` writes them into the manifest.
MODEL_BYTES = {"llama_cpp": int(7.5 * (1 << 20)), "onnx": int(9.8 * (1 << 20))}
# The trained model's perplexity is about 11; chance is 512.
PROBATION = Probation(
    checks=(
        PerplexityCheck(name="reads", slot="chat", text=HELDOUT, maximum=20),
        CompletionCheck(name="writes", slot="chat", prompt=PROMPT, min_tokens=8),
    ),
    benchmark_tokens=16,
    benchmark_repetitions=2,
)


@dataclass(frozen=True)
class Models:
    """Files by runtime, of the trained model and of one whose weights are broken."""

    good: dict[str, dict[str, Path]]
    broken: dict[str, dict[str, Path]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("models")

    def written(name: str, tensors: weights.Weights) -> dict[str, dict[str, Path]]:
        gguf, folder = root / f"{name}.gguf", root / f"{name}-onnx"
        shape = weights.Shape()
        write_gguf(gguf, name, shape, weights.vocabulary(), tensors.__getitem__)
        write_folder(folder, shape, tensors)
        return {
            "llama_cpp": {"model.gguf": gguf},
            "onnx": {path.name: path for path in folder.iterdir()},
        }

    return Models(written("base", weights.base()), written("broken", weights.broken()))


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    supervisor = Supervisor()
    yield supervisor
    await supervisor.close()


def spec(runtime: str, files: dict[str, Path]) -> WorkerSpec:
    variant = Variant(
        name="full",
        runtime=runtime,
        format="onnx" if runtime == "onnx" else "gguf",
        quantization="f16",
        files=tuple(
            File(name=name, size=path.stat().st_size, sha256="0" * 64, index="0" * 64)
            for name, path in files.items()
        ),
        memory_bytes=16 << 20,
        context_length=512,
    )
    model = ModelVersion(
        name="demo/llm", version="1", task=Task.TEXT_GENERATION, variants=(variant,)
    )
    return WorkerSpec(
        slot="chat",
        release="demo/fleet@1",
        model=model,
        variant=variant,
        files=files,
        context_length=512,
        memory_limit_bytes=128 << 20,
    )


def thread_statuses(pid: int) -> list[list[str]]:
    """What the kernel says of each thread of a process."""
    found = Path(f"/proc/{pid}/task").glob("*/status")
    return [status.read_text().splitlines() for status in found]


async def proof_of(worker: Worker) -> Proof:
    return await prove(worker, Component(slot="chat", model=worker.spec.model), PROBATION)


@pytest.mark.parametrize("runtime", ["llama_cpp", "onnx"])
async def test_a_trained_model_is_proven(
    supervisor: Supervisor, models: Models, runtime: str
) -> None:
    worker = await supervisor.start(spec(runtime, models.good[runtime]))
    proof = await proof_of(worker)
    assert proof.outcome == "passed", proof.detail
    assert proof.speed is not None
    assert proof.speed.tokens_per_second > 1
    # The whole process, within a tenth of the prediction before the first load.
    predicted = PROCESS_BYTES[runtime] + MODEL_BYTES[runtime]
    assert proof.cost.peak_memory_bytes == pytest.approx(predicted, rel=0.1), proof.cost


@pytest.mark.parametrize("runtime", ["llama_cpp", "onnx"])
async def test_a_worker_is_confined_in_every_thread(
    supervisor: Supervisor, models: Models, runtime: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What that takes from it: tests/runtimes/confinement."""
    caplog.set_level(logging.INFO)
    worker = await supervisor.start(spec(runtime, models.good[runtime]))
    (told,) = (r.getMessage() for r in caplog.records if "worker_confined" in r.getMessage())
    if "seccomp" not in told or "one thread" in told:
        assert "'limits'" in told or "'landlock'" in told or "(one thread)" in told
        return
    threads = thread_statuses(worker.pid)
    assert len(threads) >= 2
    for status in threads:
        assert {"Seccomp:\t2", "NoNewPrivs:\t1"} <= set(status)


@pytest.mark.parametrize("runtime", ["llama_cpp", "onnx"])
async def test_a_broken_model_is_not(supervisor: Supervisor, models: Models, runtime: str) -> None:
    worker = await supervisor.start(spec(runtime, models.broken[runtime]))
    proof = await proof_of(worker)
    assert proof.outcome == "failed"
    assert "at most 20 allowed" in proof.detail


async def test_both_engines_say_the_same_through_their_workers(
    supervisor: Supervisor, models: Models
) -> None:
    texts = []
    for runtime, files in models.good.items():
        worker = await supervisor.start(spec(runtime, files))
        generation = worker.generate(PROMPT, None, Sampling(max_tokens=24))
        texts.append([piece.token async for pieces in generation for piece in pieces])
    assert len(texts[0]) == 24
    assert texts[0] == texts[1]
