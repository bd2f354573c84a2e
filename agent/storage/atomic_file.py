"""Replacement of small files such that a power cut leaves the old bytes or the new ones."""

import os
from pathlib import Path


def write_file(path: Path, data: bytes) -> None:
    """Replace ``path`` with ``data`` durably, readable by its owner only; OSError.

    One writer at a time: the temporary name is fixed, so that the rest of a write that a power cut
    ended is overwritten by the next one instead of staying on the disk.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as target:
            target.write(data)
            target.flush()
            # Before the rename: otherwise a power cut could leave the new name on an empty file.
            os.fsync(target.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make renames and removals in a directory survive a power cut; OSError."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
