"""Own and class measurements decide the order of variants, and appear in explanations."""

import pytest

from agent.selection import Prior, Source
from agent.selection.memory_prediction import PROCESS_BYTES
from agent.supervisor import Worker, WorkerSpec
from agent.update.machine import State
from artifact.manifest import SelectionPolicy
from runtimes.fake import FakeModel, Faults
from tests.agent.box import MIB, Life, World

# v0 is smaller, so the roofline predicts it to be faster; v1 is faster.
SLOW = FakeModel(token_seconds=0.02, quantization="quarter")
FAST = FakeModel(padding="x" * 100)


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("box"))


async def test_what_was_measured_is_known_to_the_next_decision(world: World) -> None:
    async with Life(world) as life:
        first = await life.do(world.publish("1", SLOW, FAST))
        assert {one.variant for one in life.steps.measurements.measured(world.facts())} == {
            candidate.variant for candidate in first.decisions[0].candidates if candidate.tried
        }
        again = await life.do(world.publish("2", SLOW, FAST))
    (decision,) = again.decisions
    # For another version of the model the prediction is calibrated by measurements.
    assert {candidate.source for candidate in decision.candidates} == {Source.CALIBRATED}


async def test_what_the_hardware_class_measured_is_tried_first(world: World) -> None:
    async with Life(world) as life:
        life.steps.measurements.set_priors(
            [
                ("acme/model@1", "v0", Prior(tokens_per_second=5)),
                ("acme/model@1", "v1", Prior(tokens_per_second=500)),
            ]
        )
        receipt = await life.do(world.publish("1", SLOW, FAST))
    (decision,) = receipt.decisions
    assert decision.chosen_variant == "v1"
    assert not decision.candidate("v0").tried
    assert decision.candidate("v1").source is Source.HARDWARE_CLASS


async def test_a_shorter_context_that_the_release_allows_is_what_the_worker_gets(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fake process can hold ten MiB more than it is counted with; the limit must not end it.
    world.model_memory_bytes = PROCESS_BYTES["fake"] + 30 * MIB
    world.context_bytes = 80 << 10
    long = FakeModel(memory_bytes=40 * MIB, context_length=512)
    policy = SelectionPolicy(min_context_length=128)
    async with Life(world) as life:
        started: list[WorkerSpec] = []
        start = life.supervisor.start

        async def spy(spec: WorkerSpec) -> Worker:
            started.append(spec)
            return await start(spec)

        monkeypatch.setattr(life.supervisor, "start", spy)
        receipt = await life.do(world.publish("1", long, policy=policy))
    assert [spec.context_length for spec in started] == [384]
    candidate = receipt.decisions[0].candidate("v0")
    assert (candidate.context_length, candidate.predicted_memory_bytes) == (
        384,
        world.model_memory_bytes,
    )


async def test_memory_that_ran_out_in_probation_is_said(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "ran_out_of_memory", property(lambda _: True))
    async with Life(world) as life:
        crashing = FakeModel(faults=Faults(crash_after_tokens=1))
        receipt = await life.do(world.publish("1", crashing))
    assert (receipt.outcome, receipt.reason) == (State.REJECTED, "probation_out_of_memory")
