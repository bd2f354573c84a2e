"""Limits that a container or a systemd slice sets for this process, in cgroup v1 or v2.

The limit of every ancestor applies, so all are read. In a container the path in /proc/self/cgroup
may be the host's and not exist in the mount; then the root of the mount is this process's cgroup.
"""

from collections.abc import Iterator
from pathlib import Path

# cgroup v1 expresses "no limit" as a huge number, rounded to pages.
_UNLIMITED = 1 << 60


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may use, None without a limit."""
    limits = [
        value
        for directory, name in (
            *((directory, "memory.max") for directory in _directories(root, "")),
            *((directory, "memory.limit_in_bytes") for directory in _directories(root, "memory")),
        )
        if (value := _number(directory / name)) is not None and value < _UNLIMITED
    ]
    return min(limits, default=None)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the cores that this process may keep busy, None without a limit."""
    quotas: list[float] = []
    for directory in _directories(root, ""):
        # "max 100000" or "150000 100000": quota and period in microseconds.
        words = _text(directory / "cpu.max").split()
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):  # noqa: PLR2004 - quota and period
            quotas.append(int(words[0]) / int(words[1]))
    for directory in _directories(root, "cpu"):
        quota = _number(directory / "cpu.cfs_quota_us")
        period = _number(directory / "cpu.cfs_period_us")
        if quota and period and quota > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def _directories(root: Path, controller: str) -> Iterator[Path]:
    """Yield this process's cgroup and its ancestors; ``controller`` is empty for version 2."""
    mount = root / "sys/fs/cgroup" / controller
    path = ""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, own = rest.partition(":")
        if controller in controllers.split(","):
            path = own
    directory = mount / path.strip("/")
    if not directory.is_dir():
        directory = mount
    while directory.is_relative_to(mount):
        yield directory
        directory = directory.parent


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None
