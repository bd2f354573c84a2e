"""After a SIGKILL of any process and its restart, the rollout finishes."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from demo_fleet.processes import Box, FleetError, Process
from demo_fleet.story import RELEASE, STRATEGY, Story

SECONDS = 120.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A control plane and its boxes, all on release 1."""
    story = Story(tmp_path_factory.mktemp("fleet"))
    try:
        story.start_server()
        story.build()
        story.enroll()
        story.first_release()
        yield story
    finally:
        story.close()


def show(story: Story, rollout: str) -> dict[str, Any]:
    """Return the rollout as the CLI shows it; empty while the server is away."""
    try:
        return dict(story.server.cli("rollout", "show", rollout))
    except FleetError:
        return {}


def start_rollout(story: Story, version: str) -> str:
    strategy = story.directory / "strategy.yaml"
    strategy.write_text(STRATEGY)
    story.publish(version, story.built.finetune)
    rollout = story.server.cli(
        *("rollout", "start", f"{RELEASE}@{version}", "--to", "site=lab"),
        *("--strategy", str(strategy)),
    )
    return str(rollout["id"])


def finish(story: Story, rollout: str) -> dict[str, Any]:
    deadline = time.monotonic() + SECONDS
    while True:
        seen = show(story, rollout)
        if seen.get("state") not in {None, "running", "scheduled"}:
            return seen
        assert time.monotonic() < deadline, seen


def busy_box(story: Story, rollout: str) -> Box:
    """Return the first box that has an assignment of the rollout."""
    deadline = time.monotonic() + SECONDS
    while True:
        for device in show(story, rollout).get("devices", []):
            if device["state"] == "assigned":
                return next(box for box in story.boxes if box.name == device["name"])
        assert time.monotonic() < deadline, "nothing was assigned"


@pytest.mark.e2e
@pytest.mark.parametrize(("victim", "version"), [("agent", "2.1.0"), ("server", "2.2.0")])
def test_a_rollout_finishes_after_a_sigkill(fleet: Story, victim: str, version: str) -> None:
    rollout = start_rollout(fleet, version)
    box = busy_box(fleet, rollout)
    process: Process = box.process if victim == "agent" else fleet.server.process
    process.kill()
    assert not process.running
    (box if victim == "agent" else fleet.server).start()
    assert finish(fleet, rollout)["state"] == "succeeded"
    fleet.expect_release(version)
