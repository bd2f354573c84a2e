"""llama.cpp's log, passed to ``logging`` instead of stderr, and to listeners.

Lines on buffer sizes are kept: llama.cpp reports its allocations nowhere else.
"""

import contextlib
import ctypes
import logging
import re
from collections.abc import Callable, Iterator
from typing import Final

import llama_cpp

log = logging.getLogger(__name__)

# ggml_log_level: 2 is info, 3 a warning, 4 an error, 5 continues the line before.
_LEVELS: Final = {3: logging.INFO, 4: logging.WARNING}
_BUFFER_SIZE: Final = re.compile(r"\b(?:model|KV|RS|compute|output) buffer size =\s*([0-9.]+) MiB")

_listeners: list[Callable[[str], None]] = []


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _log_line(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    line = text.decode(errors="replace").strip()
    if line:
        for listener in _listeners:
            listener(line)
        log.log(_LEVELS.get(level, logging.DEBUG), "llama_cpp line=%s", ascii(line[:500]))


llama_cpp.llama_log_set(_log_line, ctypes.c_void_p(0))


class LoadLog:
    """Log of loading a model: buffer sizes, and the first error."""

    def __init__(self) -> None:
        self.first_error = ""
        self._mebibytes = 0.0

    @property
    def bytes(self) -> int:
        return int(self._mebibytes * (1 << 20))

    def read(self, line: str) -> None:
        """Process a line of the log."""
        if found := _BUFFER_SIZE.search(line):
            self._mebibytes += float(found[1])
        if "error" in line and not self.first_error:
            self.first_error = f": {line[:500]!a}"


@contextlib.contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Pass every log line to ``listener`` during the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
