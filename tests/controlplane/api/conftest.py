"""A control plane per test, over real TLS."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from control_plane import Clock, Plane, Publisher, running_plane


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def plane(tmp_path: Path, clock: Clock) -> AsyncIterator[Plane]:
    async with running_plane(tmp_path / "server", clock) as plane:
        yield plane


@pytest.fixture
async def publisher(plane: Plane) -> Publisher:
    """A publisher whose image repository exists."""
    publisher = Publisher(plane, ("acme", "beta"))
    await publisher.initialise()
    return publisher
