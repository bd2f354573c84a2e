"""What a worker process takes of memory, and how much of it is its model's."""

from pathlib import Path

from agent.supervisor.sharing import Sharing

# What an engine's own bookkeeping may take beside the model before the worker counts as too big.
WORKING_ROOM_BYTES = 64 << 20


class Footprint:
    """Looks at one process. ``baseline_bytes`` is what it took before it saw the model."""

    def __init__(self, sharing: Sharing) -> None:
        self.baseline_bytes = 0
        self._peak_bytes = 0
        self._sharing = sharing

    def look(self, pid: int) -> tuple[int, int]:
        """Resident memory now and at most; now is 0 when the process is gone (``pid`` 0).

        Without what it shares with the daemon, except in the peak, where the kernel counts that.
        """
        status = _read(Path(f"/proc/{pid}/status")) if pid else ""
        now, most, shared = (_kibibytes(status, name) for name in ("VmRSS:", "VmHWM:", "RssShmem:"))
        self._peak_bytes = max(self._peak_bytes, most)
        return now - self._sharing.shared_bytes(shared), self._peak_bytes

    def beyond(self, limit_bytes: int, resident_bytes: int) -> int:
        """What its model takes of that, if it is more than it may; else, or without limit, 0."""
        taken = resident_bytes - self.baseline_bytes
        return taken if limit_bytes and taken > limit_bytes + WORKING_ROOM_BYTES else 0


def _read(path: Path) -> str:
    """A file of /proc; empty once its process is gone."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _kibibytes(status: str, name: str) -> int:
    _, _, rest = status.partition(f"\n{name}")
    return int(rest.split(maxsplit=1)[0]) * 1024 if rest else 0
