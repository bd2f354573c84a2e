"""Resident memory of a worker process."""

from pathlib import Path

from agent.supervisor.sharing import Sharing


class Footprint:
    """Memory of one process, as far as it does not share it with the daemon."""

    def __init__(self, sharing: Sharing) -> None:
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


def _read(path: Path) -> str:
    """Read a file of /proc; empty once its process has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _kibibytes(status: str, name: str) -> int:
    _, _, rest = status.partition(f"\n{name}")
    return int(rest.split(maxsplit=1)[0]) * 1024 if rest else 0
