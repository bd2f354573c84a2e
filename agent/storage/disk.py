"""Free space of the disk with the models, and its errors as typed ones."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from agent.errors import DiskFailedError, DiskFullError


def free_bytes(directory: Path) -> int:
    """Return the bytes that an unprivileged process may still write."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Raise an OSError of the block as DiskFullError or DiskFailedError."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise disk_full(str(error)) from error
        raise DiskFailedError(
            f"the disk failed: {error}",
            advice="Check the kernel's log on the box, and replace the disk if it is failing.",
        ) from error


def disk_full(why: str) -> DiskFullError:
    """Build the error for a disk without room for the release."""
    return DiskFullError(
        f"the disk is too full for this release: {why}",
        advice="Free space on the box, or roll out a release with smaller variants.",
    )
