"""The disk that models are kept on: what is free there, and how it fails."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from agent.errors import DiskFailedError, DiskFullError


def free_bytes(directory: Path) -> int:
    """What an unprivileged process may still write there."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """What the disk says meanwhile is raised as DiskFullError or DiskFailedError."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise disk_full(str(error)) from error
        raise DiskFailedError(
            f"the disk failed: {error}",
            advice="Look into the kernel's log of the box, and replace the disk if it is failing.",
        ) from error


def disk_full(why: str) -> DiskFullError:
    return DiskFullError(
        f"the disk is too full for this release: {why}",
        advice="Free space on the box, or roll out a release with smaller variants.",
    )
