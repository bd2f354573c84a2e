"""What a source said, kept on disk for the next variant that is compared with it.

A search compares many variants with one source; a tape spares it evaluating that one again, as long
as what it says is not too much to keep.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from runtimes.evaluation.frames import Ended, read, write_end, write_rows
from runtimes.predictions import Predictions

# Some 30,000 predictions of a vocabulary of 32,000.
MAX_TAPE_BYTES: Final = 4 << 30


class Tape:
    """One source's predictions; ``whole`` once they were recorded to their end."""

    def __init__(self, path: Path, limit_bytes: int = MAX_TAPE_BYTES) -> None:
        self._path = path
        self._limit = limit_bytes
        self.whole = False

    def recording(self, said: Iterable[Predictions]) -> Iterator[Predictions]:
        """Passes predictions on, and keeps them while there is room."""
        left = self._limit
        with self._path.open("wb") as file:
            for some in said:
                left -= some.rows.nbytes + some.targets.nbytes
                if left > 0:
                    write_rows(file, some)
                yield some
            write_end(file, Ended(0))
        self.whole = left > 0
        if not self.whole:
            self._path.unlink()

    def replayed(self) -> Iterator[Predictions]:
        with self._path.open("rb") as file:
            while isinstance(frame := read(file), Predictions):
                yield frame
