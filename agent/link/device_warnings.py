"""Conditions that need an operator although the box serves: in the log, the status and a metric."""

import logging
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

# The status on the wire takes this many.
MAX_WARNINGS: Final = 16


class DeviceWarnings:
    """Current warnings by name; ``changed`` is called when one appears, changes or ends."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._texts: dict[str, str] = {}
        self._changed = changed

    @property
    def texts(self) -> list[str]:
        """The warnings in the order of their names."""
        return [text for _, text in sorted(self._texts.items())][:MAX_WARNINGS]

    def set(self, name: str, text: str) -> None:
        """Add or change a warning; an empty text ends it."""
        if self._texts.get(name, "") == text:
            return
        if text:
            self._texts[name] = text
            log.warning("device_warning name=%s text=%s", name, ascii(text))
        else:
            del self._texts[name]
            log.info("device_warning_ended name=%s", name)
        self._changed()
