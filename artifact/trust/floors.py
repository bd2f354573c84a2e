"""Version floors: the newest versions a device has accepted; older ones are refused."""

from collections.abc import Mapping
from typing import Protocol


class Floors(Protocol):
    """Numbers by name that only rise, stored so that they survive a power cut."""

    def floors(self) -> Mapping[str, int]:
        """Return all floors."""

    def raise_floors(self, numbers: Mapping[str, int]) -> None:
        """Raise each floor to at least this number, durably."""
