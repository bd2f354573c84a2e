"""A full disk: recognised, reported, and survived by a reserve for the next start."""

import contextlib
import errno
import logging
import os
from pathlib import Path
from typing import Final

from controlplane.errors import StorageFullError

log = logging.getLogger(__name__)

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
# SQLite makes a 32 KiB shared-memory file and grows its log, folders take a block each, and the
# files written at a start are small.
RESERVE_BYTES: Final = 4 << 20


def is_no_space(error: BaseException) -> bool:
    """Return whether an error reports a full disk or a spent quota."""
    return isinstance(error, OSError) and error.errno in NO_SPACE


def disk_full(detail: str) -> StorageFullError:
    return StorageFullError(
        f"disk_full: the server's disk is full ({detail})",
        advice="Free space on the server's disk; reads, downloads and streams go on meanwhile.",
    )


def check_writable(folder: Path) -> None:
    """Write and flush a small file; raises StorageFullError if the disk is full."""
    path = folder / ".write-probe"
    try:
        with path.open("wb") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if is_no_space(error):
            raise disk_full(str(error)) from error
        raise
    finally:
        path.unlink(missing_ok=True)


class DiskReserve:
    """Space that a start on a full disk gives back, so that the server can start and serve reads.

    SQLite removes its shared-memory file on a clean stop and cannot even read without a new one.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "reserve"

    def release_if_full(self) -> None:
        """Delete the reserve if nothing can be written."""
        try:
            check_writable(self._path.parent)
        except StorageFullError:
            self._path.unlink(missing_ok=True)
            log.warning("disk_reserve_released path=%s", self._path)

    def fill(self) -> None:
        """Make the reserve, unless it exists or would take the last free space."""
        status = os.statvfs(self._path.parent)
        if self._path.exists() or status.f_bavail * status.f_frsize < 2 * RESERVE_BYTES:
            return
        # A crash or a full disk in between must not leave a short file that counts as the reserve.
        partial = self._path.with_name(".reserve")
        try:
            with partial.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
            partial.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            log.warning("disk_reserve_not_made error=%s", error.strerror)
