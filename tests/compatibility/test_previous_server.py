"""An agent of this release against a control plane that speaks the previous wire."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from artifact.health import ReleaseHealth, SlotHealth
from tests.agent.box import World, eventually
from tests.agent.link import control_plane
from tests.agent.link.control_plane import ControlPlane
from tests.agent.link.test_stream import WINDOW, connected
from tests.agent.tls import Authority
from tests.compatibility import previous_wire

PREVIOUS = previous_wire.module("device")


@pytest.fixture
async def plane(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ControlPlane]:
    """A scripted control plane whose messages are all of the previous wire."""
    monkeypatch.setattr(control_plane, "wire", PREVIOUS)
    plane = ControlPlane(Authority())
    await plane.start()
    yield plane
    await plane.stop()


async def test_an_update_is_carried_out_and_reported(tmp_path: Path, plane: ControlPlane) -> None:
    world = World(tmp_path)
    wanted = world.publish("1")
    plane.assignment = PREVIOUS.Assignment(
        generation=1, release=wanted.release, manifest_sha256=wanted.manifest_sha256
    )
    async with connected(world, plane) as box:
        # A field that the previous server does not know must not disturb those that it reads.
        box.health = ReleaseHealth("acme/a@1", (SlotHealth("chat", True, 0, 1, 0),))
        signed = await plane.until(
            lambda received: [one.receipt for one in received if one.HasField("receipt")]
        )
        receipt = PREVIOUS.Receipt.FromString(signed[0].receipt)
        assert (receipt.generation, receipt.outcome) == (1, PREVIOUS.UPDATE_STATE_COMMITTED)
        assert receipt.current_release == wanted.release
        await eventually(lambda: not box.life.journal.receipts())
        hello = next(one.hello for one in plane.received if one.HasField("hello"))
        assert hello.facts.cpu_model == "test"
        last = await plane.until(
            lambda received: [
                one.status
                for one in received
                if one.HasField("status") and one.status.current_release
            ]
        )
        assert last[-1].current_release == wanted.release


async def test_telemetry_is_acknowledged(tmp_path: Path, plane: ControlPlane) -> None:
    async with connected(World(tmp_path), plane) as box:
        box.telemetry.append(WINDOW)
        box.link.wake()
        batches = await plane.until(
            lambda received: [one.telemetry for one in received if one.HasField("telemetry")]
        )
        assert [window.requests for window in batches[0].windows] == [3]
        await eventually(lambda: not len(box.telemetry))
