"""What a device has accepted before, kept so that nothing older is accepted again."""

from collections.abc import Mapping
from typing import Protocol


class Floors(Protocol):
    """Numbers that only rise, by name, kept so that a power cut does not lose them."""

    def floors(self) -> Mapping[str, int]:
        """All of them."""

    def raise_floors(self, numbers: Mapping[str, int]) -> None:
        """Durably, each to at least this."""
