"""Warnings in the statuses of a device, logged once each."""

import logging
from collections.abc import Sequence
from typing import Final

from controlplane.api.receipts import detail

log = logging.getLogger(__name__)

# A device cannot fill the server's log: so many different warnings are logged of one stream.
MAX_LOGGED: Final = 64
# As many as a status may have (device.proto).
MAX_PER_STATUS: Final = 16


class ReportedWarnings:
    """Warnings that one stream has reported so far."""

    def __init__(self, device_id: str, device_name: str) -> None:
        self._device_id = device_id
        self._device_name = device_name
        self._known: set[str] = set()

    def note(self, texts: Sequence[str]) -> None:
        """Log the warnings of a status that are new on this stream."""
        for text in map(detail, texts[:MAX_PER_STATUS]):
            if text not in self._known and len(self._known) < MAX_LOGGED:
                self._known.add(text)
                log.warning(
                    "device_warning device=%s name=%s text=%s",
                    self._device_id,
                    self._device_name,
                    ascii(text),
                )
