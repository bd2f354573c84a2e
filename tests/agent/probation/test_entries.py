"""Every entry that programs may call is proven, whether or not the release has checks for it."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from fake_fleet import release_of, worker_spec

from agent.probation import CheckResult, Proof, prove, prove_routes
from agent.supervisor import Supervisor, Worker
from artifact.manifest import (
    Adapter,
    Cascade,
    Component,
    Escalation,
    File,
    Pipeline,
    Probation,
    Route,
    Share,
    Target,
    Task,
    Tensor,
    TensorCheck,
)
from runtimes.fake import FakeModel, Faults, write_model

BROKEN_TEMPLATE = "{% generation %}"
NO_SYSTEM = (
    "{% for message in messages %}{% if message.role == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}{{ message.content }}{% endfor %}"
)


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    supervisor = Supervisor()
    yield supervisor
    await supervisor.close()


async def proof_of(
    supervisor: Supervisor,
    directory: Path,
    model: FakeModel,
    *,
    checks: Sequence[TensorCheck] = (),
    adapters: dict[str, FakeModel] | None = None,
    input_shapes: dict[str, tuple[int, ...]] | None = None,
) -> Proof:
    spec = worker_spec(directory, model)
    paths = {
        name: write_model(directory / f"{name}.fake", made)
        for name, made in (adapters or {}).items()
    }
    variant = msgspec.structs.replace(spec.variant, input_shapes=input_shapes or {})
    worker = await supervisor.start(replace(spec, variant=variant, adapters=paths))
    component = Component(
        slot="chat",
        model=spec.model,
        adapters=tuple(
            Adapter(
                name=name,
                model=f"acme/{name}",
                version="1",
                file=File(name="a", size=1, sha256="0" * 64, index="0" * 64),
                bases=("0" * 64,),
            )
            for name in paths
        ),
    )
    probation = Probation(checks=tuple(checks), benchmark_tokens=4, benchmark_repetitions=1)
    return await prove(worker, component, probation)


def outcome(proof: Proof, name: str) -> CheckResult:
    (found,) = [check for check in proof.checks if check.name == name]
    return found


async def test_chat_and_completion_are_proven_without_any_check(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    proof = await proof_of(supervisor, tmp_path, FakeModel())
    assert [check.name for check in proof.checks] == ["chat", "completion", "benchmark"]
    assert outcome(proof, "chat").detail == "4 tokens"
    assert proof.outcome == "passed"


async def test_a_template_that_fails_every_conversation_fails_the_candidate(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    proof = await proof_of(supervisor, tmp_path, FakeModel(chat_template=BROKEN_TEMPLATE))
    assert proof.outcome == "failed"
    assert "chat failed" in proof.detail
    assert outcome(proof, "completion").outcome == "passed"


async def test_a_template_may_refuse_system_messages(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    proof = await proof_of(supervisor, tmp_path, FakeModel(chat_template=NO_SYSTEM))
    assert proof.outcome == "passed"
    assert "refuses system messages" in outcome(proof, "chat").detail


async def test_each_adapter_is_proven(supervisor: Supervisor, tmp_path: Path) -> None:
    good, bad = FakeModel(reply="good"), FakeModel(faults=Faults(fail_after_tokens=2))
    proof = await proof_of(supervisor, tmp_path, FakeModel(), adapters={"good": good, "bad": bad})
    assert outcome(proof, "adapter good").outcome == "passed"
    assert outcome(proof, "adapter bad").outcome == "failed"
    assert proof.outcome == "failed"


async def test_a_context_too_short_for_our_conversation_is_unmeasured(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    proof = await proof_of(supervisor, tmp_path, FakeModel(context_length=30))
    assert outcome(proof, "chat").outcome == "unmeasured"
    assert outcome(proof, "completion").outcome == "passed"


async def test_an_embedding_is_proven(supervisor: Supervisor, tmp_path: Path) -> None:
    proof = await proof_of(supervisor, tmp_path, FakeModel(task=Task.EMBEDDING))
    assert outcome(proof, "embedding").detail == "16 dimensions"
    assert proof.outcome == "passed"


async def test_a_refusal_of_guessed_shapes_is_unmeasured_and_no_failure(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    model = FakeModel(task=Task.TENSOR, faults=Faults(min_rows=3))
    proof = await proof_of(supervisor, tmp_path, model)
    assert [check.outcome for check in proof.checks] == ["unmeasured", "unmeasured"]
    assert "minimum is 3" in outcome(proof, "tensors").detail
    assert proof.speed is None
    assert proof.outcome == "passed"


async def test_shapes_that_the_build_found_are_used(supervisor: Supervisor, tmp_path: Path) -> None:
    model = FakeModel(task=Task.TENSOR, faults=Faults(min_rows=3))
    proof = await proof_of(supervisor, tmp_path, model, input_shapes={"input": (3, 4)})
    assert [check.outcome for check in proof.checks] == ["passed", "passed"]
    assert proof.speed is not None
    model = FakeModel(task=Task.TENSOR, faults=Faults(min_rows=5))
    proof = await proof_of(supervisor, tmp_path, model, input_shapes={"input": (3, 4)})
    assert proof.outcome == "failed"


async def test_a_refusal_of_the_releases_own_inputs_is_a_failure(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    model = FakeModel(task=Task.TENSOR, width=2, faults=Faults(min_rows=3))
    tensor = Tensor(name="input", datatype="FP32", shape=(1, 2), data=(1, 2))
    check = TensorCheck(name="golden", slot="chat", inputs=(tensor,), outputs=(tensor,))
    proof = await proof_of(supervisor, tmp_path, model, checks=[check])
    assert outcome(proof, "tensors").outcome == "failed"


# -- composed routes


class Slots:
    """Workers by slot, and a release with routes over them."""

    def __init__(self, supervisor: Supervisor, directory: Path) -> None:
        self.workers: dict[str, Worker] = {}
        self._supervisor = supervisor
        self._directory = directory

    async def add(self, **models: FakeModel) -> None:
        for slot, model in models.items():
            spec = worker_spec(self._directory, model, slot=slot)
            self.workers[slot] = await self._supervisor.start(spec)

    async def prove(self, *routes: Route) -> list[CheckResult]:
        specs = [worker.spec for worker in self.workers.values()]
        return await prove_routes(release_of(*specs, routes=routes), self.workers)


@pytest.fixture
def slots(supervisor: Supervisor, tmp_path: Path) -> Slots:
    return Slots(supervisor, tmp_path)


CASCADE = Route(
    name="assistant",
    cascade=Cascade(
        steps=(Target(slot="small"), Target(slot="large")),
        escalate=Escalation(below_mean_log_probability=-1.0),
    ),
)


def pipeline(targets: int) -> Route:
    return Route(
        name="topics",
        pipeline=Pipeline(
            embed="embed",
            classify="classify",
            input="input",
            output="output",
            targets=tuple(Target(slot="small") for _ in range(targets)),
        ),
    )


async def test_a_cascade_and_a_pipeline_that_work_pass(slots: Slots) -> None:
    await slots.add(
        small=FakeModel(),
        large=FakeModel(),
        embed=FakeModel(task=Task.EMBEDDING),
        classify=FakeModel(task=Task.TENSOR, width=16),
    )
    results = await slots.prove(CASCADE, pipeline(16))
    assert [(each.name, each.slot, each.outcome) for each in results] == [
        ("route assistant", "small", "passed"),
        ("route topics", "embed", "passed"),
    ]


@pytest.mark.parametrize(("width", "targets"), [(16, 15), (8, 8)])
async def test_a_pipeline_whose_models_do_not_fit_fails(
    slots: Slots, width: int, targets: int
) -> None:
    """Every request would fail: the scores do not match the targets, or the input the embedding."""
    await slots.add(
        small=FakeModel(),
        embed=FakeModel(task=Task.EMBEDDING),
        classify=FakeModel(task=Task.TENSOR, width=width),
    )
    (result,) = await slots.prove(pipeline(targets))
    assert result.outcome == "failed"


async def test_a_cascade_whose_first_step_fails_is_found(slots: Slots) -> None:
    await slots.add(small=FakeModel(faults=Faults(fail_after_tokens=1)), large=FakeModel())
    (result,) = await slots.prove(CASCADE)
    assert result.outcome == "failed"


async def test_a_split_is_proven_by_its_slots(slots: Slots) -> None:
    await slots.add(small=FakeModel(), large=FakeModel())
    shares = (Share(slot="small", weight=1), Share(slot="large", weight=1))
    assert await slots.prove(Route(name="both", split=shares)) == []
