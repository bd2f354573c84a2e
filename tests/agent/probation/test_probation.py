"""Probation of a candidate on real workers of the fake runtime."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_fleet import worker_spec

from agent.probation import CheckResult, Proof, prove
from agent.supervisor import Supervisor
from agent.supervisor.spec import WorkerTimeouts
from artifact.manifest import (
    Check,
    CompletionCheck,
    Component,
    Embedding,
    EmbeddingCheck,
    PerplexityCheck,
    Probation,
    Task,
    Tensor,
    TensorCheck,
)
from artifact.window import Provenance
from runtimes.fake import FakeModel, Faults

TIMEOUTS = WorkerTimeouts(backoff_first_seconds=0.02, backoff_most_seconds=0.1)
TEXT = "a text that is held out"
PROVENANCE = Provenance("rapl", "package", "counter")


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(timeouts=TIMEOUTS)
    yield supervisor
    await supervisor.close()


@dataclass
class Meter:
    """A meter that advances by a given number of joules between two readings."""

    joules_per_reading: float
    joules: float = 0.0
    provenance: Provenance = PROVENANCE
    sample_interval_seconds: float = 1.0

    def read_joules(self) -> float:
        self.joules += self.joules_per_reading
        return self.joules


@dataclass
class Bench:
    supervisor: Supervisor
    directory: Path

    async def prove(
        self,
        *checks: Check,
        model: FakeModel | None = None,
        meter: Meter | None = None,
        benchmark_tokens: int = 8,
        timeout_seconds: float = 60,
    ) -> Proof:
        spec = worker_spec(self.directory, model or FakeModel(perplexity=8))
        worker = await self.supervisor.start(spec)
        probation = Probation(
            checks=checks,
            benchmark_tokens=benchmark_tokens,
            benchmark_repetitions=5,
            timeout_seconds=timeout_seconds,
        )
        return await prove(worker, Component(slot="chat", model=spec.model), probation, meter)


@pytest.fixture
def bench(supervisor: Supervisor, tmp_path: Path) -> Bench:
    return Bench(supervisor, tmp_path)


def perplexity(maximum: float, slot: str = "chat") -> PerplexityCheck:
    return PerplexityCheck(name="heldout", slot=slot, text=TEXT, maximum=maximum)


def tensor_check(data: tuple[float, ...], **options: object) -> TensorCheck:
    return TensorCheck(
        name="golden",
        slot="chat",
        inputs=(Tensor(name="input", datatype="FP32", shape=(2, 2), data=(1, 2, 4, 3)),),
        outputs=(Tensor(name="output", datatype="FP32", shape=(2, 2), data=data),),
        **options,  # type: ignore[arg-type]
    )


# A fake encoder counts character codes by their last four bits.
A, B = ((0.0, 1.0) + (0.0,) * 14), ((0.0, 0.0, 1.0) + (0.0,) * 13)


def embedding_check(min_cosine: float, **expected: tuple[float, ...]) -> EmbeddingCheck:
    return EmbeddingCheck(
        name="means",
        slot="chat",
        expected=tuple(Embedding(text=text, vector=vector) for text, vector in expected.items()),
        min_cosine=min_cosine,
    )


def outcome(proof: Proof, name: str) -> CheckResult:
    (found,) = [check for check in proof.checks if check.name == name]
    return found


async def test_a_good_candidate_passes_and_is_measured(bench: Bench) -> None:
    completion = CompletionCheck(name="greets", slot="chat", prompt="hi", contains="ships")
    proof = await bench.prove(perplexity(9), completion)
    assert proof.outcome == "passed"
    assert proof.detail == ""
    assert [check.name for check in proof.checks] == [
        "heldout",
        "greets",
        "chat",
        "completion",
        "benchmark",
    ]
    assert outcome(proof, "heldout").detail.startswith("perplexity 8.000 over 22 tokens")
    assert proof.speed is not None
    assert proof.speed.repetitions == 5
    assert proof.speed.tokens_per_second > 100
    assert proof.speed.ttft_seconds > 0
    assert proof.speed.joules_per_token is None
    assert 16 << 20 < proof.cost.peak_memory_bytes < 64 << 20
    assert proof.cost.peak_memory_bytes > 8 << 20
    assert proof.cost.seconds > 0
    assert proof.cost.joules is None
    assert "energy unmeasured" in str(proof.cost)


async def test_the_rate_is_of_decoding(bench: Bench) -> None:
    proof = await bench.prove(model=FakeModel(token_seconds=0.01))
    assert proof.speed is not None
    # 10 ms per token plus the overhead of sleeping.
    assert 60 < proof.speed.tokens_per_second <= 100
    assert 0.01 <= proof.speed.ttft_seconds < 0.03


async def test_a_wrong_model_fails_with_the_figures(bench: Bench) -> None:
    wrong = FakeModel(faults=Faults(wrong_outputs=True))
    proof = await bench.prove(perplexity(9), model=wrong)
    assert proof.outcome == "failed"
    assert "at most 9 allowed" in proof.detail
    # A failed check skips the benchmark.
    assert proof.speed is None


@pytest.mark.parametrize(
    ("check", "detail"),
    [
        (
            CompletionCheck(name="c", slot="chat", prompt="hi", contains="boats"),
            "'boats' is not in",
        ),
        (
            CompletionCheck(name="c", slot="chat", prompt="hi", max_tokens=4, min_tokens=8),
            "4 tokens; the minimum is 8",
        ),
        (CompletionCheck(name="c", slot="chat", prompt="x" * 600), "context holds 512"),
    ],
)
async def test_completions_fail_by_text_length_and_refusal(
    bench: Bench, check: CompletionCheck, detail: str
) -> None:
    proof = await bench.prove(check)
    assert outcome(proof, "c").outcome == "failed"
    assert detail in outcome(proof, "c").detail


async def test_tensors_match_within_tolerance(bench: Bench) -> None:
    model = FakeModel(task=Task.TENSOR, width=2)
    assert (await bench.prove(tensor_check((2, 4, 8, 6)), model=model)).outcome == "passed"
    off = await bench.prove(tensor_check((2, 4, 8, 6.5)), model=model)
    assert "off by 0.5" in off.detail
    wide = await bench.prove(tensor_check((2, 4, 8, 6.5), tolerance=0.6), model=model)
    assert wide.outcome == "passed"
    assert wide.speed is not None
    assert wide.speed.tokens_per_second > 10


async def test_tensors_may_match_in_their_argmax(bench: Bench) -> None:
    model = FakeModel(task=Task.TENSOR, width=2)
    right = tensor_check((0, 1, 1, 0), argmax_only=True)
    half = tensor_check((1, 0, 1, 0), argmax_only=True)
    half_allowed = tensor_check((1, 0, 1, 0), argmax_only=True, min_match=0.5)
    assert (await bench.prove(right, model=model)).outcome == "passed"
    assert "1 of 2 rows" in (await bench.prove(half, model=model)).detail
    assert (await bench.prove(half_allowed, model=model)).outcome == "passed"


async def test_every_vector_must_be_near_the_expected_one(bench: Bench) -> None:
    encoder = FakeModel(task=Task.EMBEDDING)
    # The length does not matter, only the direction.
    long = tuple(3 * value for value in B)
    near = await bench.prove(embedding_check(0.99, aa=A, b=long), model=encoder)
    assert near.outcome == "passed", near.detail
    assert near.speed is not None
    # aab lies between: its cosine with a is 2 / sqrt(5).
    askew = embedding_check(0.9, aa=A, aab=A)
    failed = await bench.prove(askew, model=encoder)
    assert failed.outcome == "failed"
    assert failed.speed is None
    assert "cosine of text 2 is 0.8944, at least 0.9 required of 2" in failed.detail
    allowed = await bench.prove(embedding_check(0.89, aa=A, aab=A), model=encoder)
    assert allowed.outcome == "passed"


async def test_vectors_of_other_dimensions_fail(bench: Bench) -> None:
    encoder = FakeModel(task=Task.EMBEDDING)
    proof = await bench.prove(embedding_check(0.9, a=A[:8]), model=encoder)
    assert proof.outcome == "failed"
    assert "the model gives 16 dimensions, expected 8" in proof.detail


async def test_what_cannot_be_judged_is_inconclusive(bench: Bench) -> None:
    tensors = FakeModel(task=Task.TENSOR, width=2)
    proof = await bench.prove(perplexity(9), model=tensors)
    assert proof.outcome == "inconclusive"
    contradiction = await bench.prove(tensor_check((2, 4)), model=tensors)
    assert contradiction.outcome == "inconclusive"
    nowhere = embedding_check(0.9, a=(0.0,) * 16)
    zero = await bench.prove(nowhere, model=FakeModel(task=Task.EMBEDDING))
    assert zero.outcome == "inconclusive"
    assert "own vector 1 is zero" in zero.detail
    assert (await bench.prove(nowhere)).outcome == "inconclusive"
    # Prefill yields the only token: there is no decode to time.
    untimed = await bench.prove(benchmark_tokens=1)
    assert untimed.outcome == "inconclusive"
    assert "nothing to time" in untimed.detail


async def test_time_that_runs_out_is_inconclusive(bench: Bench) -> None:
    slow = FakeModel(token_seconds=0.05)
    check = CompletionCheck(name="slow", slot="chat", prompt="hi", max_tokens=200)
    proof = await bench.prove(check, perplexity(9), model=slow, timeout_seconds=0.3)
    assert outcome(proof, "slow").outcome == "inconclusive"
    assert "timeout_seconds" in outcome(proof, "slow").detail
    assert proof.outcome == "inconclusive"


@pytest.mark.parametrize("task", Task)
async def test_a_model_of_every_task_can_be_proven(bench: Bench, task: Task) -> None:
    proof = await bench.prove(model=FakeModel(task=task))
    assert proof.outcome == "passed", proof.detail
    assert proof.speed is not None
    assert proof.speed.tokens_per_second > 0
    assert proof.speed.repetitions == 5


async def test_a_crash_is_a_failure(bench: Bench) -> None:
    proof = await bench.prove(model=FakeModel(faults=Faults(crash_after_tokens=3)))
    assert proof.outcome == "failed"
    assert "exited with code 139" in proof.detail


async def test_checks_of_other_slots_are_not_its_own(bench: Bench) -> None:
    proof = await bench.prove(perplexity(1.1, slot="other"))
    assert [check.name for check in proof.checks] == ["chat", "completion", "benchmark"]
    assert proof.outcome == "passed"


async def test_energy_comes_with_its_provenance(bench: Bench) -> None:
    proof = await bench.prove(meter=Meter(joules_per_reading=20))
    assert proof.speed is not None
    # 20 J for five times eight tokens.
    assert proof.speed.joules_per_token == 0.5
    assert proof.speed.energy_provenance == PROVENANCE
    # Two more readings, before and after all of probation.
    assert (proof.cost.joules, proof.cost.provenance) == (60, PROVENANCE)


async def test_a_meter_that_stands_still_measured_nothing(bench: Bench) -> None:
    proof = await bench.prove(meter=Meter(joules_per_reading=0))
    assert proof.speed is not None
    assert proof.speed.joules_per_token is None
    assert proof.speed.energy_provenance is None
