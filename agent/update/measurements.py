"""What is known of how variants do on this box: its own measurements, and those of its class.

Its own are on disk, since they are worth more with every release. They are no promise: losing them
costs predictions, so a file that cannot be read or written is none.
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
    """What is in the file: measurements, newest first, and the hardware that they hold for."""

    hardware: str
    measurements: tuple[Measurement, ...]


class MeasurementStore:
    """Safe to call from any thread; without a path it lasts as long as the process."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._kept = _load(path) if path else _Kept("", ())
        self._priors: Mapping[tuple[str, str], Prior] = {}

    def measured(self, facts: DeviceFacts) -> tuple[Measurement, ...]:
        """What this box measured, newest first; nothing once its hardware or limits changed."""
        kept = self._kept
        return kept.measurements if kept.hardware == fingerprint(facts) else ()

    def add(self, facts: DeviceFacts, new: Measurement) -> None:
        """Keep a measurement in place of an older one of the same variant; blocks on the disk."""
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
        """What devices of this hardware class measured, by variant of this model version."""
        return {variant: prior for (of, variant), prior in self._priors.items() if of == model}

    def set_priors(self, priors: Iterable[tuple[str, str, Prior]]) -> None:
        """Take the control plane's word for it: (model version, variant, measurement)."""
        heard = list(priors)[:MAX_PRIORS]
        self._priors = {(model, variant): prior for model, variant, prior in heard}


def _load(path: Path) -> _Kept:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_FILE_BYTES), type=_Kept)
    except FileNotFoundError:
        return _Kept("", ())
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("measurements_unreadable error=%s", ascii(str(error)))
        return _Kept("", ())
