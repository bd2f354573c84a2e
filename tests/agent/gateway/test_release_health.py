"""The health that a box reports of the release that it serves."""

import asyncio

from gateway_box import Box

from agent.gateway.release_health import release_health
from artifact.health import ReleaseHealth, SlotHealth
from artifact.manifest import Cascade, Escalation, Route, Target
from runtimes.fake import FakeModel, Faults

CASCADE = Route(
    name="answer",
    cascade=Cascade(
        steps=(Target(slot="chat"), Target(slot="other")),
        escalate=Escalation(refusals=("never",)),
    ),
)


async def test_requests_and_errors_of_a_slot_count_for_every_route(box: Box) -> None:
    assert release_health(box.serving, box.collector) == ReleaseHealth()
    faulty = FakeModel(faults=Faults(fail_after_tokens=4))
    await box.deploy(chat=faulty, other=FakeModel(), routes=(CASCADE,))
    await box.complete(model="chat", max_tokens=2)
    await box.complete(model="chat", max_tokens=20)
    await box.complete(model="answer", max_tokens=20)
    await box.complete(model="chat", max_tokens=0)
    health = release_health(box.serving, box.collector)
    assert health.release == "demo/fleet@1"
    assert health.slots == (
        SlotHealth("chat", ready=True, requests=3, errors=2),
        SlotHealth("other", ready=True, requests=1),
    )
    # Counts are of one release: the next one begins again.
    await box.deploy(version="2", chat=FakeModel())
    health = release_health(box.serving, box.collector)
    assert health == ReleaseHealth("demo/fleet@2", (SlotHealth("chat", ready=True),))


async def test_a_crash_is_reported_as_it_happens(box: Box) -> None:
    seen: list[tuple[bool, int]] = []
    changed = asyncio.Event()

    def look() -> None:
        (slot,) = release_health(box.serving, box.collector).slots
        seen.append((slot.ready, slot.worker_restarts))
        changed.set()

    box.supervisor._changed = look
    await box.deploy(chat=FakeModel(faults=Faults(crash_on_text="crash")))
    assert (await box.complete(model="chat", prompt="crash")).status_code == 500
    async with asyncio.timeout(10):
        while len(seen) < 2:
            changed.clear()
            await changed.wait()
    assert seen[:2] == [(False, 1), (True, 1)]
    (slot,) = release_health(box.serving, box.collector).slots
    assert (slot.requests, slot.errors) == (1, 1)
