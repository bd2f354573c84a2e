"""Memory of a worker process, and the part of it that belongs to the model."""

from pathlib import Path

from agent.supervisor.sharing import Sharing

# Allowance for an engine's own data beside the model, before the worker exceeds its limit.
WORKING_ROOM_BYTES = 64 << 20


class Footprint:
    """Memory of one process. ``baseline_bytes`` is its resident memory before the model loads."""

    def __init__(self, sharing: Sharing) -> None:
        self.baseline_bytes = 0
        self._peak_bytes = 0
        self._sharing = sharing

    def look(self, pid: int) -> tuple[int, int]:
        """Return resident bytes now and at peak; now is 0 once the process has ended (``pid`` 0).

        Memory shared with the daemon is subtracted from the first. The kernel's peak includes it.
        """
        status = _read(Path(f"/proc/{pid}/status")) if pid else ""
        now, most, shared = (_kibibytes(status, name) for name in ("VmRSS:", "VmHWM:", "RssShmem:"))
        self._peak_bytes = max(self._peak_bytes, most)
        return now - self._sharing.shared_bytes(shared), self._peak_bytes

    def beyond(self, limit_bytes: int, resident_bytes: int) -> int:
        """Return the model's share of ``resident_bytes`` if it exceeds the limit, else 0."""
        taken = resident_bytes - self.baseline_bytes
        return taken if limit_bytes and taken > limit_bytes + WORKING_ROOM_BYTES else 0


def _read(path: Path) -> str:
    """Read a file of /proc; empty once its process has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _kibibytes(status: str, name: str) -> int:
    _, _, rest = status.partition(f"\n{name}")
    return int(rest.split(maxsplit=1)[0]) * 1024 if rest else 0
