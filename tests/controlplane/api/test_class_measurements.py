"""Assignments carry the measurements of other devices of the same hardware class."""

from pathlib import Path
from typing import Any

from control_plane import Box, Plane, Publisher, request_id
from flotilla.v1 import device_pb2, hardware_pb2, rollout_pb2, rollout_pb2_grpc, selection_pb2
from google.protobuf.timestamp_pb2 import Timestamp

STRATEGY = "waves: [{name: all, percent: 100}]"
FACTS = hardware_pb2.HardwareFacts(cpu_model="a processor", cores=4)
OTHER = hardware_pb2.HardwareFacts(cpu_model="another processor", cores=4)


async def roll_out(plane: Plane, release: str) -> str:
    stub: Any = rollout_pb2_grpc.RolloutServiceStub(plane.channel())
    started = await stub.StartRollout(
        rollout_pb2.StartRolloutRequest(request_id=request_id(), release=release, strategy=STRATEGY)
    )
    return str(started.rollout.id)


async def finished(plane: Plane, rollout_id: str) -> None:
    """Wait for the end of the rollout: its devices are free for another one only then."""
    stub: Any = rollout_pb2_grpc.RolloutServiceStub(plane.channel())
    async for _ in stub.WatchRollout(rollout_pb2.WatchRolloutRequest(id=rollout_id)):
        pass


async def report(box: Box, release: str, facts: hardware_pb2.HardwareFacts, speed: float) -> None:
    """Commit the assignment with a receipt in which q8 was measured at this speed."""
    life = await box.connect(facts=facts)
    wanted = await life.read_assignment()
    assert not wanted.class_measurements
    candidate = selection_pb2.SelectionCandidate(
        variant="q8", measured_tokens_per_second=speed, measured_memory_bytes=1 << 20
    )
    decision = selection_pb2.SelectionDecision(
        slot="chat", model="acme/tiny@1", chosen_variant="q8", candidates=[candidate]
    )
    receipt = device_pb2.Receipt(
        generation=wanted.generation,
        release=release,
        outcome=device_pb2.UPDATE_STATE_COMMITTED,
        current_release=release,
        decisions=[decision],
        finished_at=Timestamp(seconds=1),
    )
    await life.send(receipt=box.sign(receipt))
    await life.read_ack()
    await life.end()


async def test_the_next_release_of_the_model_starts_from_what_the_class_measured(
    plane: Plane, publisher: Publisher, tmp_path: Path
) -> None:
    file, chunks = publisher.make_file(tmp_path / "model.gguf", b"weights" * 1000)
    await publisher.upload(chunks)
    for counter, version in enumerate(("1.0.0", "1.1.0"), start=1):
        await publisher.publish(publisher.manifest(file, version=version, counter=counter))
    first, twin, stranger = [await plane.enroll(f"box-{number}") for number in range(3)]
    rollout_id = await roll_out(plane, "acme/chat@1.0.0")
    for box, facts, speed in ((first, FACTS, 20.0), (twin, FACTS, 24.0), (stranger, OTHER, 99.0)):
        await report(box, "acme/chat@1.0.0", facts, speed)
    await finished(plane, rollout_id)
    await roll_out(plane, "acme/chat@1.1.0")
    life = await first.connect(facts=FACTS)
    while (wanted := await life.read_assignment()).release != "acme/chat@1.1.0":
        pass
    (measured,) = wanted.class_measurements
    assert (measured.model, measured.variant) == ("acme/tiny@1", "q8")
    assert (measured.tokens_per_second, measured.devices) == (22.0, 2)
    assert not measured.HasField("joules_per_token")
    await life.end()
