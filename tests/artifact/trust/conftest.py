import pytest
from image_world import World


@pytest.fixture
def world() -> World:
    return World()
