"""Predictions of a source, kept on disk for the next variant that is compared with it.

A search compares many variants with one source. A tape avoids evaluating the source again, unless
its predictions are too large to keep.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from runtimes.evaluation.frames import Ended, read, write_end, write_rows
from runtimes.predictions import Predictions

# About 30,000 predictions with a vocabulary of 32,000.
MAX_TAPE_BYTES: Final = 4 << 30


class Tape:
    """One source's predictions; ``complete`` once they were recorded to the end."""

    def __init__(self, path: Path, limit_bytes: int = MAX_TAPE_BYTES) -> None:
        self._path = path
        self._limit = limit_bytes
        self.complete = False

    def recording(self, predictions: Iterable[Predictions]) -> Iterator[Predictions]:
        """Yield the predictions, and record them until the limit is reached."""
        remaining = self._limit
        with self._path.open("wb") as file:
            for some in predictions:
                remaining -= some.rows.nbytes + some.targets.nbytes
                if remaining > 0:
                    write_rows(file, some)
                yield some
            write_end(file, Ended(0))
        # Reached only if the consumer read everything: a comparison that failed leaves no tape.
        self.complete = remaining > 0
        if not self.complete:
            self._path.unlink()

    def replayed(self) -> Iterator[Predictions]:
        with self._path.open("rb") as file:
            while isinstance(frame := read(file), Predictions):
                yield frame
