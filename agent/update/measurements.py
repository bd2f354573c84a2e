"""Measurements of variants: those made on this box, and those of its hardware class.

The box's own are kept on disk across releases. Losing them only makes predictions worse, so an
unreadable file counts as empty and a failed write is logged.
"""

import logging
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from agent.selection import Measurement, Prior
from agent.storage.atomic_file import write_file
from artifact.device_facts import DeviceFacts, fingerprint

log = logging.getLogger(__name__)

MAX_MEASUREMENTS: Final = 64
MAX_PRIORS: Final = 256
MAX_FILE_BYTES: Final = 1 << 20


class _Kept(Struct, frozen=True):
    """Content of the file: measurements, newest first, and the hardware they were made on."""

    hardware: str
    measurements: tuple[Measurement, ...]


class MeasurementStore:
    """Measurements by variant; thread-safe. Without a path they are kept in memory only."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._kept = _load(path) if path else _Kept("", ())
        self._priors: Mapping[tuple[str, str], Prior] = {}

    def measured(self, facts: DeviceFacts) -> tuple[Measurement, ...]:
        """Return this box's measurements, newest first; empty after hardware or limits changed."""
        kept = self._kept
        return kept.measurements if kept.hardware == fingerprint(facts) else ()

    def add(self, facts: DeviceFacts, new: Measurement) -> None:
        """Store a measurement and drop the older one of the same variant; blocks on the disk."""
        with self._lock:
            others = [one for one in self.measured(facts) if not one.is_of(new.model, new.variant)]
            kept = (new, *others)[:MAX_MEASUREMENTS]
            self._kept = _Kept(fingerprint(facts), kept)
            if self._path is None:
                return
            try:
                write_file(self._path, msgspec.json.encode(self._kept))
            except OSError as error:
                log.warning("measurement_not_kept error=%s", ascii(str(error)))

    def priors(self, model: str) -> dict[str, Prior]:
        """Return the measurements of this hardware class by variant of a model version."""
        return {variant: prior for (of, variant), prior in self._priors.items() if of == model}

    def set_priors(self, priors: Iterable[tuple[str, str, Prior]]) -> None:
        """Replace the class measurements: (model version, variant, measurement) each."""
        accepted = list(priors)[:MAX_PRIORS]
        self._priors = {(model, variant): prior for model, variant, prior in accepted}


def _load(path: Path) -> _Kept:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_FILE_BYTES), type=_Kept)
    except FileNotFoundError:
        return _Kept("", ())
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("measurements_unreadable error=%s", ascii(str(error)))
        return _Kept("", ())
